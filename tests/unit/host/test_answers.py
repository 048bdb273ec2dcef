"""Answers of programs are kept while what they were made from is the same, and not otherwise."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ktrdr_vm.host.answers import Answers

# As if the question had been asked after the files of a test were old.
LATER = 3_600_000_000_000


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path / "home" / "clients")


@pytest.fixture
def read(tmp_path: Path, answers: Answers) -> list[str]:
    """A file, a folder, and a path that does not exist."""
    answers.folder.parent.mkdir()
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "client.conf").write_text("one")
    (tmp_path / "modules").mkdir()
    return [str(tmp_path / name) for name in ("settings/client.conf", "modules", "settings/other.conf")]


def keep(answers: Answers, read: list[str], *, question: object = "a", began: int = 0) -> None:
    answers.keep("client.json", question, {"found": [1]}, read, began or time.time_ns() + LATER)


def test_an_answer_is_found_again(answers: Answers, read: list[str]) -> None:
    assert answers.find("client.json", "a") is None
    keep(answers, read)
    assert answers.find("client.json", "a") == {"found": [1]}
    assert answers.folder.stat().st_mode & 0o777 == 0o700


def test_another_question_has_no_answer(answers: Answers, read: list[str]) -> None:
    keep(answers, read, question=["PATH", "/usr/bin"])
    assert answers.find("client.json", ["PATH", "/usr/bin:/opt/bin"]) is None


@pytest.mark.parametrize("change", ["written", "same size and time", "replaced", "created", "removed", "in a folder"])
def test_a_change_of_what_was_read_is_noticed(answers: Answers, read: list[str], change: str) -> None:
    file, folder, absent = map(Path, read)
    keep(answers, read)
    if change == "written":
        file.write_text("two and more")
    elif change == "same size and time":
        times = file.stat()
        file.write_text("two")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "replaced":
        (file.parent / "new").write_text("one")
        (file.parent / "new").rename(file)
    elif change == "created":
        absent.write_text("")
    elif change == "removed":
        file.unlink()
    else:
        (folder / "module.py").write_text("")
    assert answers.find("client.json", "a") is None


def test_what_changed_while_the_program_ran_is_not_kept(answers: Answers, read: list[str]) -> None:
    """The program may have read the file before the change."""
    keep(answers, read, began=time.time_ns())
    assert answers.find("client.json", "a") is None and not answers.folder.exists()


def test_what_was_removed_while_the_program_ran_is_not_kept(answers: Answers, read: list[str]) -> None:
    answers.keep("client.json", "a", 1, [read[2]], time.time_ns())
    assert answers.find("client.json", "a") is None


def test_a_state_directory_is_not_created(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("")
    keep(answers, [str(tmp_path / "conf")])
    assert not answers.folder.parent.exists()


@pytest.mark.parametrize("how", ["link", "writable", "no JSON", "another form", "another part", "folder"])
def test_a_file_that_is_not_its_own_is_not_used(answers: Answers, read: list[str], how: str) -> None:
    keep(answers, read)
    file = answers.folder / "client.json"
    if how == "link":
        file.rename(answers.folder / "other")
        file.symlink_to("other")
    elif how == "writable":
        file.chmod(0o666)
    elif how == "folder":
        file.unlink()
        file.mkdir()
    else:
        forms = {"no JSON": "[", "another form": "[]", "another part": '{"question": "a", "answer": 1, "read": []}'}
        file.write_text(forms[how])
    assert answers.find("client.json", "a") is None
