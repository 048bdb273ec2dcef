"""What a person types that cannot be: what, where and what to do next, never a trace, and the exit code of the
contract."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.cli.main import main
from ktrdr_vm.errors import BusyError, HostError, KtrdrError, ProvisionError, ResidueError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance.instance import Instance


class Command:
    """The command in this process: no domain is there, whatever it asks."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._monkeypatch, self._capsys = home, monkeypatch, capsys
        monkeypatch.setenv("KTRDR_VM_HOME", str(home))
        monkeypatch.setattr("ktrdr_vm.instance.instance.os.geteuid", lambda: 0)
        monkeypatch.setattr("ktrdr_vm.cli.main.signal.signal", lambda *_: None)
        monkeypatch.setattr(Libvirt, "find", lambda *_: None)
        monkeypatch.setattr("ktrdr_vm.cli.ssh._become", lambda *words: pytest.fail(f"became {words}"))

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["ktrdr-vm", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images remove x", "x: there is no such image"),
        ("images remove ../../etc", "../../etc: there is no such image"),
        ("templates remove ../x", "there is no such template"),
        ("console nope", "there is no instance nope"),
        ("egress test nope github.com 443", "there is no instance nope"),
        ("escalations list nope", "there is no instance nope"),
        ("escalations list Bad/../x", "'Bad/../x' is not an instance_id"),
        ("report nope --against ", "there is no run"),
        ("status " + "a" * 64, "is not an instance_id"),
        ("destroy Bad", "'Bad' is not an instance_id"),
    ],
)
def test_what_is_not_there_is_said_and_nothing_is_touched(command: Command, line: str, said: str) -> None:
    code, out, err = command(*line.split(" "))
    assert code == 2 and out == "" and said in err and "\n  next: " in err
    assert list(command.home.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["plan p.yaml", "validate p.yaml", "apply p.yaml", "render p.yaml --out o", "gate one unit", "mcp"]
)
def test_a_workspace_that_is_not_there_is_no_empty_one(command: Command, line: str) -> None:
    code, _, err = command(*line.split(), "--workspace", str(command.home / "nowhere"))
    assert code == 2 and "nowhere' does not exist" in err


@pytest.mark.parametrize("mark", ["", "nothing"])
def test_an_empty_name_is_no_run(command: Command, mark: str) -> None:
    (command.home / "runs" / "one").mkdir(parents=True)
    assert command("events", "one", "--run", mark)[0] == 2


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ({}, 0),
        ({"one": ResidueError("left", hint="h", left=["tap"]), "two": BusyError("busy", hint="h")}, 5),
        ({"one": HostError("no libvirt", hint="h"), "two": ProvisionError("foreign", hint="h")}, 4),
        ({"two": BusyError("busy", hint="h")}, 7),
    ],
)
def test_destroying_many_ends_with_what_matters_most(
    command: Command, monkeypatch: pytest.MonkeyPatch, errors: dict[str, KtrdrError], code: int
) -> None:
    gone = []

    def destroy(self: Instance, notify: Any) -> None:
        if self.identity.instance_id in errors:
            raise errors[self.identity.instance_id]
        gone.append(self.identity.instance_id)

    monkeypatch.setattr(Instance, "destroy", destroy)
    assert command("destroy", "one", "two", "three")[0] == code
    assert gone == [name for name in ("one", "two", "three") if name not in errors]


def test_nothing_goes_before_everything_was_asked_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    monkeypatch.setattr(
        Instance, "find_mode", lambda self: "interactive" if self.identity.instance_id == "lived-in" else ""
    )
    monkeypatch.setattr(Instance, "destroy", lambda self, notify: gone.append(self.identity.instance_id))
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    code, _, err = command("destroy", "one", "lived-in")
    assert (code, gone) == (2, []) and "lived-in is interactive" in err
    assert command("destroy", "one", "lived-in", "--yes")[0] == 0 and gone == ["one", "lived-in"]


@pytest.mark.parametrize("words", [["gate", "nosuch", "unit"], ["attach", "nosuch"]])
def test_an_instance_that_is_not_there_has_no_guard_to_warn_of(command: Command, words: list[str]) -> None:
    code, out, said = command(*words)
    assert (code, out) == (2, "") and "there is no instance nosuch" in said and "guard" not in said


# Without the digest of an image.
PLANS = ("{}", '{"facts": null}', '{"facts": {"image": null}}', '{"facts": {"image": []}}')


@pytest.mark.parametrize("what", ["images", "templates"])
@pytest.mark.parametrize(
    "journal",
    [
        '{"schema_version": 99}',
        "{",
        *(f'{{"schema_version": 3, "instance_id": "newer", "plan": {plan}}}' for plan in PLANS),
    ],
)
def test_nothing_is_removed_that_an_unreadable_journal_may_name(command: Command, what: str, journal: str) -> None:
    """The disk of that instance would be lost, and it is there for a newer version of the program."""
    folder = command.home / "instances" / "newer"
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text(journal)
    code, _, said = command(what, "remove", "0" * 64)
    assert code == 2 and "journals of these instances cannot be read" in said and "newer" in said


def test_a_state_directory_whose_links_lead_in_a_circle_is_none(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "loop"))
    code, _, said = command("images", "list")
    assert code in (0, 2) and "Traceback" not in said
    assert "its links lead in a circle" in said if code else "no images" in said


@pytest.mark.parametrize(("what", "noun"), [("images", "image"), ("templates", "template")])
def test_an_image_stays_while_an_instance_is_based_on_it(command: Command, what: str, noun: str) -> None:
    paths = Home(command.home).instance("one")
    paths.directory.mkdir(parents=True)
    key = "0" * 64
    Journal(paths.journal, "one", template=key, plan={"facts": {"image": {"digest": key}}}).save()
    code, _, said = command(what, "remove", key)
    assert code == 2 and f"instances use this {noun}: one" in said and "destroy them first" in said


def test_removing_what_is_not_there_creates_nothing(command: Command, tmp_path: Path) -> None:
    code, _, said = command("images", "remove", "0" * 64)
    assert code == 2 and "there is no such image" in said and list(tmp_path.iterdir()) == []


def test_the_root_of_the_file_system_is_no_state_directory(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would get the mode 0711, and nobody but root could list it."""
    monkeypatch.setenv("KTRDR_VM_HOME", "/")
    code, _, said = command("images", "list")
    assert code == 2 and "the root of the file system cannot be" in said


def test_a_name_that_no_file_can_have_is_no_profile(command: Command) -> None:
    code, _, said = command("validate", "a" * 300)
    assert code == 2 and "cannot be read: File name too long" in said and "next: name a regular file" in said
