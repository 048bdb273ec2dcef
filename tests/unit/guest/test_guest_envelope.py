"""What the remote shell is given: nothing of a command, its environment or its input stands in an argv."""

from __future__ import annotations

import pytest

from ktrdr_vm.guest.envelope import RemoteProcess, find_announcement, make_envelope, make_kill_command
from ktrdr_vm.guest.protocol import GuestRefusedError


def test_nothing_of_the_command_is_in_the_remote_line() -> None:
    envelope = make_envelope(["run", "s3cret"], token="t", environment={"A": "s3cret"}, chdir="/s3cret", elevate=True)
    assert "s3cret" not in envelope.remote
    assert envelope.remote == f"exec sudo -n -- /bin/sh -c 'eval \"$(head -c {len(envelope.head)})\"'"
    assert b"s3cret" in envelope.head


def test_the_head_is_counted_in_bytes() -> None:
    envelope = make_envelope(["echo", "ü€"], token="t", environment=None, chdir=None, elevate=False)
    assert f"head -c {len(envelope.head)}" in envelope.remote
    assert len(envelope.head) > len(envelope.head.decode())


@pytest.mark.parametrize("name", ["A B", "1A", "A;id", "", "A=B", "A\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(GuestRefusedError):
        make_envelope(["x"], token="t", environment={name: "v"}, chdir=None, elevate=False)


@pytest.mark.parametrize("command", [[], "", "a\0b", ["a\0"]])
def test_bad_commands_are_refused(command: list[str] | str) -> None:
    with pytest.raises(GuestRefusedError):
        make_envelope(command, token="t", environment=None, chdir=None, elevate=False)


def test_announcement_is_found_after_a_talkative_shell_and_only_with_the_token() -> None:
    found = find_announcement(b"Welcome!\ntok 12 13 14\nrest", b"tok")
    assert found == (RemoteProcess(12, 13, 14), b"rest")
    assert find_announcement(b"other 12 13 14\n", b"tok") is None
    assert find_announcement(b"tok 12 13 1", b"tok") is None
    assert find_announcement(b"tok -1 13 14\n", b"tok") is None


@pytest.mark.parametrize("process", [RemoteProcess(1, 1, 1), RemoteProcess(5, 1, 0), RemoteProcess(0, 9, 9)])
def test_nobody_else_is_killed(process: RemoteProcess) -> None:
    assert make_kill_command(process) == ["true"]
