"""The Prometheus rules, by Prometheus' own tool."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ktrdr_vm.host.paths import PROJECT


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)")
def test_the_rules_do_what_they_say() -> None:
    ended = subprocess.run(
        ["promtool", "test", "rules", "rules.test.yaml"],
        cwd=PROJECT / "dashboards",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
