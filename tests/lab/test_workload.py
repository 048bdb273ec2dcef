"""A workload in its own session, over a real sshd: lost connections, limits, endings."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from laboratory import needs
from test_guest_ssh import Server

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.ssh import SshGuest
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.report.model import WorkloadResult
from ktrdr_vm.run.workload import follow, run_workload

pytestmark = needs.SSHD


class Reaching:
    """Connections to one sshd; the newest can be cut."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._guest: SshGuest | None = None
        self.made = 0

    def connect(self) -> SshGuest:
        if self._guest is None or not self._guest.alive:
            self._guest = self._server.connect()
            self.made += 1
        return self._guest

    def cut(self) -> None:
        assert self._guest is not None
        self._guest.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("workload") / "sshd")
    yield made
    made.stop()


@pytest.fixture
def reaching(server: Server) -> Iterator[Reaching]:
    made = Reaching(server)
    yield made
    made.connect().run('rm -rf "$HOME/.ktrdr-workload"', timeout=20)
    made.cut()


def run(reaching: Reaching, *command: str, timeout: int = 60, **more: str) -> tuple[WorkloadResult, str]:
    shown: list[bytes] = []
    result = run_workload(
        reaching.connect, Workload(command, timeout), environment=more, chdir="/tmp", mask=str, on_output=shown.append
    )
    assert result is not None
    return result, b"".join(shown).decode()


def test_words_environment_folder_and_exit_code_arrive(reaching: Reaching) -> None:
    line = 'printf "%s|" "$@" "$GREETING"; pwd; echo aside >&2; exit 7'
    result, shown = run(reaching, "sh", "-c", line, "sh", "a b", "'", "%s", "$HOME", GREETING="it's me")
    assert shown == "a b|'|%s|$HOME|it's me|/tmp\naside\n"
    assert (result.outcome, result.exit_code, result.stdout) == ("failed", 7, shown)


def test_a_lost_connection_loses_nothing(reaching: Reaching) -> None:
    def cut() -> None:
        time.sleep(2)
        reaching.cut()

    threading.Thread(target=cut).start()
    result, shown = run(reaching, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done")
    assert (shown.split(), result.outcome, reaching.made) == (list("12345678"), "passed", 2)


def test_at_its_limit_it_is_killed_with_its_children(reaching: Reaching) -> None:
    result, shown = run(reaching, "sh", "-c", "echo begun; sleep 61.77 & sleep 61.77", timeout=3)
    assert (result.outcome, result.exit_code, shown) == ("timeout", None, "begun\n")
    assert reaching.connect().run("pgrep -f '[s]leep 61.77'", timeout=20).stdout == b""


def test_what_is_killed_in_the_guest_ends_without_an_exit_code(reaching: Reaching) -> None:
    result, _ = run(reaching, "sh", "-c", 'kill -9 "$(cat "$HOME/.ktrdr-workload/pid")"; sleep 1')
    assert (result.outcome, result.exit_code) == ("failed", None)
    assert "without an exit code" in result.ended


def test_who_comes_later_reads_it_from_the_beginning(reaching: Reaching) -> None:
    run(reaching, "sh", "-c", "echo one; echo two; exit 3")
    shown: list[bytes] = []
    ending = follow(reaching.connect, mask=str, on_output=shown.append, timeout=30)
    assert (b"".join(shown), ending.exit_code) == (b"one\ntwo\n", 3)


def test_where_nothing_was_started_there_is_nothing_to_follow(reaching: Reaching) -> None:
    with pytest.raises(GuestError, match="no workload"):
        follow(reaching.connect, mask=str, on_output=lambda _: None, timeout=30)
