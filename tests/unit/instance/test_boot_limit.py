"""How long a boot may take."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from ktrdr_vm.instance.instance import BOOT_LIMIT, find_boot_limit
from ktrdr_vm.plan.facts import Facts, ImageFacts

FACTS = Facts("tcg", "/bin/false", "q35", "/home", ImageFacts("none", "0" * 64, "/nonexistent"))


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_a_stock_image_has_longer(accelerator: Literal["kvm", "tcg"]) -> None:
    ours = replace(FACTS, accelerator=accelerator)
    assert find_boot_limit(ours) == BOOT_LIMIT[accelerator]
    assert find_boot_limit(replace(ours, image=replace(FACTS.image, boot="disk"))) > BOOT_LIMIT[accelerator]
