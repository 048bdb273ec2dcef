"""Variables that a person gives to `gate`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.run.gates import run_gates


@pytest.mark.parametrize("name", ["ansible_become", "ansible_user", "ansible_python_interpreter"])
def test_a_variable_that_ansible_connects_by_is_refused_before_a_gate(tmp_path: Path, name: str) -> None:
    loaded = cast(Any, SimpleNamespace())
    with pytest.raises(UsageError, match=f"{name}' has no effect here"):
        run_gates(loaded, ["startability"], tmp_path, trusted=True, variables={name: "x"})
