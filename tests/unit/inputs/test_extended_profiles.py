"""Which file `extends` names, and that the plan covers what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.plan import validate
from ktrdr_vm.errors import DocumentError
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.json_schema import render_json_schema

BASE = "version: 1\nname: base\nimage: debian-13-docker\n"
FACTS = Facts("tcg", "/bin/false", "q35", "/home", ImageFacts("none", "0" * 64, "/nonexistent"))


def test_it_is_beneath_the_folder_of_the_profile_or_shipped(tmp_path: Path) -> None:
    place = tmp_path / "w"
    (place / "deep").mkdir(parents=True)
    for path in (tmp_path / "above.yaml", place / "beside.yaml", place / "deep/below.yaml"):
        path.write_text(BASE)
    profile = place / "p.yaml"
    for name in ("beside.yaml", "./beside.yaml", "deep/below.yaml", "startability.yaml", "startability"):
        profile.write_text(f"extends: {name}\nname: own\n")
        assert read_profile(profile, place).profile.name == "own"
    for name in ("../above.yaml", str(tmp_path / "above.yaml"), "nowhere.yaml"):
        profile.write_text(f"extends: {name}\nname: own\n")
        with pytest.raises(DocumentError) as caught:
            read_profile(profile, place)
        assert caught.value.problems[0].path == "extends"


def test_the_digest_of_the_plan_covers_what_is_extended(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("extends: base.yaml\nname: own\n")
    digests = set()
    for more in ("", "gates: [unit]\n", "egress: {allow: [{host: a.example}]}\n", "vars: {a: 1}\n"):
        (tmp_path / "base.yaml").write_text(BASE + more)
        loaded = read_profile(tmp_path / "p.yaml", tmp_path)
        digests.add(Plan(loaded.profile, FACTS, parse_instance_id("one"), loaded.data).digest)
    assert len(digests) == 4


def test_the_schema_is_printed_and_nothing_is_validated() -> None:
    said = CliRunner().invoke(validate, ["--schema"], standalone_mode=False)
    assert said.return_value == 0 and json.loads(said.output) == render_json_schema()
