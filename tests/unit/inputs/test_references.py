"""What a profile names and is not there: said before a plan is made, where it stands, with what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.plan import validate
from ktrdr_vm.errors import DocumentError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.inputs.references import check_places, check_references, read_playbook
from ktrdr_vm.inputs.resolve import gather_profile
from ktrdr_vm.profile.load import LoadedProfile, load_profile

HEAD = "version: 1\nname: p\n"
IMAGE = "image: debian-13-docker\n"


def load(text: str) -> LoadedProfile:
    return load_profile(text, "p.yaml", lambda reference, source: pytest.fail(f"{source} extends {reference}"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("image: debian-13-dokcer\n", "p.yaml:3:8: image: there is no image recipe debian-13-dokcer; did you mean debian-13-docker?"),
        (IMAGE + "egress:\n  allow:\n    - {host: a.example.com}\n    - {preset: githb}\n", "p.yaml:7:16: egress.allow[1].preset: there is no preset githb; did you mean github?"),
        (IMAGE + "egress: {allow: [{preset: cobol}]}\n", "there is no preset cobol; known: anthropic, debian, "),
        (IMAGE + "gates:\n  - startability\n  - nothing\n", "p.yaml:6:5: gates[1]: there is no playbook for the gate nothing"),
        (IMAGE + "gates: [startability]\nvars: {project_src: /a, ansible_become: true}\n", "p.yaml:5:41: vars.ansible_become: the variable 'ansible_become' has no effect here"),
    ],
)  # fmt: skip
def test_what_is_named_and_is_not_there(tmp_path: Path, text: str, wanted: str) -> None:
    [problem] = check_references(load(HEAD + text), tmp_path)
    assert wanted in str(problem)
    with pytest.raises(DocumentError) as caught:
        gather_profile(load(HEAD + text), home=Home(tmp_path), workspace=tmp_path, instance_id="one")
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mounts: [{source: ./nothing, target: /data}]\n", "mounts[0].source: there is no such folder: "),
        ("mounts: [{source: file, target: /data}]\n", "mounts[0].source: cannot be opened: Not a directory"),
        ("mounts: [{source: link, target: /data}]\n", "mounts[0].source: cannot be opened: Not a directory (links"),
        ("workspace: {source: nothing}\n", "workspace.source: workspace: nothing cannot be opened as a folder"),
        (
            "workspace: {source: .}\nprepare: {playbook: nothing, key: [file]}\n",
            "prepare.playbook: there is no playbook",
        ),
        (
            "workspace: {source: .}\nprepare: {playbook: unit, key: [file, gone, link/x]}\n",
            "prepare.key[2]: 'link/x' cannot be read: Not a directory",
        ),
        ("workspace: {source: .}\nprepare: {playbook: own.yaml, key: [file]}\n", "own.yaml:3:7: [0].tasks[0].user: "),
    ],
)
def test_a_place_that_cannot_be_used_is_said_by_validate_and_by_plan(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "own.yaml").write_text("- hosts: all\n  tasks:\n    - user: {name: x}\n")
    [problem] = check_places(load(HEAD + IMAGE + text), tmp_path, ())
    assert wanted in str(problem)
    with pytest.raises(DocumentError) as caught:
        gather_profile(load(HEAD + IMAGE + text), home=Home(tmp_path), workspace=tmp_path, instance_id="one")
    assert caught.value.problems == (problem,)
    assert "policy" not in caught.value.hint
    profile = tmp_path / "p.yaml"
    profile.write_text(HEAD + IMAGE + text)
    said = CliRunner().invoke(validate, [str(profile), "--workspace", str(tmp_path)], standalone_mode=False)
    assert said.return_value == 2 and wanted in said.output


def test_what_is_wrong_in_a_playbook_stands_at_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "own.yaml").write_text(
        "- hosts: all\n  tasks:\n    - {name: a, ansible.builtin.user: {name: x}}\n    - comand: ls\n"
    )
    found = [str(one) for one in check_references(load(HEAD + IMAGE + "gates: [own, nothing]\n"), tmp_path)]
    assert [line.split("/")[-1].split(":")[:2] for line in found] == [
        ["own.yaml", "3"],
        ["own.yaml", "4"],
        ["nothing.yaml"],
    ]


def test_a_playbook_that_is_no_text_gets_the_hint_for_playbooks(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"- hosts: all\n  name: \xff\n")
    with pytest.raises(DocumentError) as caught:
        gather_profile(
            load(HEAD + IMAGE + "gates: [own.yaml]\n"), home=Home(tmp_path), workspace=tmp_path, instance_id="a"
        )
    assert [(one.line, one.message) for one in caught.value.problems] == [(2, "not UTF-8")]
    assert "correct the playbook" in caught.value.hint


def test_gates_of_the_command_line_take_the_place_of_the_profiles(tmp_path: Path) -> None:
    assert check_references(load(HEAD + IMAGE + "gates: [nothing]\n"), tmp_path, gates=False) == []


def test_what_is_there_is_no_problem(tmp_path: Path) -> None:
    every = "egress: {allow: [{preset: debian}, {preset: python}, {preset: node}, {preset: github}]}\ngates: [startability, isolation]\n"
    assert check_references(load(HEAD + IMAGE + every), tmp_path) == []
    url = "image: {url: 'https://images.example.com/a.qcow2', sha256: " + "a" * 64 + "}\n"
    assert check_references(load(HEAD + url), tmp_path) == []


def test_a_playbook_of_a_commit_has_its_name_in_the_repository(tmp_path: Path) -> None:
    path = tmp_path / "playbooks/own.yaml"
    path.parent.mkdir()
    path.write_text("- {hosts: all, tasks: [{name: t, debug: {msg: x}}]}\n")
    assert read_playbook(path, tmp_path).source == str(path)
    judging = read_playbook(path, tmp_path, committed=True)
    assert (judging.source, judging.path) == ("playbooks/own.yaml", path)
    assert read_playbook(path, tmp_path / "other", committed=True).source == str(path)
