"""The pictures of the documentation, drawn from real runs."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest
from laboratory.command import assert_nothing_left
from laboratory.lab import Lab

from ktrdr_vm.host.paths import PROJECT

STREAMS = ("pictures-demo", "pictures-asks", "pictures-rests")


@pytest.mark.full
@pytest.mark.usefixtures("image")
def test_the_pictures_show_three_streams_and_what_apply_prints(lab: Lab) -> None:
    out = lab.scratch / "pictures"
    out.mkdir()
    drawn = subprocess.run(
        [sys.executable, PROJECT / "scripts/pictures", out], env=lab.environment, cwd=lab.scratch,
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stdout[-3000:] + drawn.stderr[-3000:]
    top, apply = ((out / name).read_text() for name in ("top.svg", "apply.svg"))
    for name in STREAMS:
        assert name in top
        assert_nothing_left(lab, name)
    assert "models.example.com" in top and "suspended" in top
    assert "residue:" in apply and str(lab.scratch) not in apply
    for text in (top, apply):
        assert ElementTree.fromstring(text).tag.endswith("svg") and "url(" not in text.replace("url(#", "")
