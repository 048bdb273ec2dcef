import tracemalloc
from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.gates import load
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.inputs.references import find_playbook

PLAY = "- hosts: all\n  tasks: [{name: t, ansible.builtin.debug: {msg: x}}]\n"


def test_the_workspace_comes_before_what_is_shipped(tmp_path):
    assert find_playbook("startability", tmp_path).name == "startability.yaml"
    own = tmp_path / "playbooks" / "startability.yaml"
    own.parent.mkdir()
    own.write_text(PLAY)
    assert find_playbook("startability", tmp_path) == own


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_link_in_the_workspace_is_refused_whoever_names_it(tmp_path, where):
    outside, workspace = tmp_path / "outside", tmp_path / "workspace"
    outside.mkdir()
    (outside / "gate.yaml").write_text(PLAY)
    workspace.mkdir()
    if where == "file":
        (workspace / "gate.yaml").symlink_to(outside / "gate.yaml")
        name = "gate.yaml"
    else:
        (workspace / "deep").symlink_to(outside)
        name = "deep/gate.yaml"
    for trusted in (False, True):
        with pytest.raises(UsageError, match="links are not followed"):
            find_playbook(name, workspace, trusted=trusted)
    outside_name = str(outside / "gate.yaml")
    with pytest.raises(UsageError, match="outside of the workspace"):
        find_playbook(outside_name, workspace)
    assert find_playbook(outside_name, workspace, trusted=True).exists()


def test_what_is_nowhere_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(UsageError) as caught:
        find_playbook("nothing", tmp_path)
    assert str(tmp_path) in caught.value.where


def test_the_digest_covers_includes_and_sent_files(tmp_path):
    main = tmp_path / "main.yaml"
    main.write_text(
        "- hosts: all\n  tasks:\n    - {name: i, ansible.builtin.include_tasks: more.yaml}\n    - {name: s, ansible.builtin.script: run.sh now}\n"
    )
    (tmp_path / "more.yaml").write_text("- {name: m, ansible.builtin.debug: {msg: x}}\n")
    (tmp_path / "run.sh").write_text("true\n")
    digests = {load_playbook(main).digest}
    (tmp_path / "more.yaml").write_text("- {name: m, ansible.builtin.debug: {msg: y}}\n")
    digests.add(load_playbook(main).digest)
    (tmp_path / "run.sh").write_text("false\n")
    digests.add(load_playbook(main).digest)
    assert len(digests) == 3


def test_a_huge_file_of_a_branch_is_not_read_to_its_end(tmp_path):
    """A hole of a terabyte costs the branch nothing; the task refuses it when it comes to send it."""
    main = tmp_path / "main.yaml"
    main.write_text("- hosts: all\n  tasks:\n    - {name: c, ansible.builtin.copy: {src: huge, dest: /tmp/}}\n")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert len(load_playbook(main).digest) == 64


def test_what_a_playbook_sends_is_digested_piece_by_piece_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six files of 64 MiB were 400 MiB of memory, in root's process, before anything was planned."""
    tasks = "".join(f"    - {{name: t{number}, copy: {{src: big{number}, dest: /x}}}}\n" for number in range(6))
    main = tmp_path / "main.yaml"
    main.write_text(f"- hosts: all\n  tasks:\n{tasks}")
    for number in range(6):
        with (tmp_path / f"big{number}").open("wb") as file:
            file.truncate(8 << 20)
    tracemalloc.start()
    digest = load_playbook(main).digest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    (tmp_path / "big5").write_bytes(b"other")
    assert load_playbook(main).digest != digest
    monkeypatch.setattr(load, "MAX_TOTAL", 20 << 20)
    with pytest.raises(UsageError, match="larger than 20 MiB"):
        load_playbook(main)


@pytest.mark.parametrize("gate", ["orders", "gates/orders.yaml"])
def test_from_a_sub_folder_the_option_that_finds_the_gate_is_named(tmp_path, monkeypatch, gate):
    (tmp_path / ".git").mkdir()
    for folder in ("playbooks", "gates", "services/api"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("playbooks", "gates"):
        (tmp_path / folder / "orders.yaml").write_text(PLAY)
    monkeypatch.chdir(tmp_path / "services/api")
    with pytest.raises(UsageError, match=r"the repository above it has one: use --workspace \.\./\.\.") as met:
        find_playbook(gate, Path.cwd())
    assert met.value.hint == "name the whole repository: --workspace ../.."
    with pytest.raises(UsageError, match=r"there is no playbook for the gate other$"):
        find_playbook("other", Path.cwd())
    assert find_playbook(gate, tmp_path).is_file()
