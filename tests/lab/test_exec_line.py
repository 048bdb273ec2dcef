"""`exec` carries the words, the exit code, the signals and the end of a command, and `forward` its ports. A real sshd,
no VM."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import needs
from test_guest_ssh import Server, hear_signals

from ktrdr_vm.cli import ssh as ssh_commands
from ktrdr_vm.cli.connect import parse_forward, require_free_port
from ktrdr_vm.cli.ssh import make_exec_line, make_shell_line
from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.guest.personalize import render_exports
from ktrdr_vm.guest.protocol import ENVIRONMENT_FILE

pytestmark = needs.SSHD


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("exec") / "sshd")
    made.connect().close()  # it answers
    yield made
    made.stop()


def ssh(server: Server, *words: str, tty: bool = False) -> list[str]:
    settings = (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        f"IdentityFile={server.key}",
    )
    options = [word for one in settings for word in ("-o", one)]
    line = make_exec_line(words, tty=tty)
    return [
        "ssh",
        "-F",
        "/dev/null",
        *options,
        "-p",
        str(server.port),
        "-tt" if tty else "-T",
        "--",
        "root@127.0.0.1",
        line,
    ]


def run(server: Server, *words: str, tty: bool = False, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(ssh(server, *words, tty=tty), input=stdin, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("cd /etc && pwd", 0, "/etc\n"),
        ("exit 5", 5, ""),
        ("echo 'a  b' \"$HOME\" | wc -l", 0, "1\n"),
        ("kill -9 $$", 137, ""),
        ("sh -c 'kill -TERM $$'", 143, ""),
        ("echo one # a comment", 0, "one\n"),
        ("no-such-command", 127, ""),
    ],
)
def test_ssh_runs_a_line_of_the_shell(server: Server, line: str, code: int, said: str) -> None:
    ended = subprocess.run(
        [*ssh(server, "x")[:-1], make_shell_line((line,))], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stdout.decode()) == (code, said)


@pytest.mark.parametrize("tty", [False, True], ids=["plain", "terminal"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("true",), 0),
        (("false",), 1),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), 137),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("sh", "-c", "kill -ABRT $$"), 134),
        (("sh", "-c", "kill -HUP $$"), 129),
        (("no-such-command",), 127),
        (("/etc/passwd",), 126),
        (("exit", "5"), 5),
    ],
    ids=str,
)
def test_the_code_is_what_a_shell_says(server: Server, words: tuple[str, ...], code: int, tty: bool) -> None:
    assert run(server, *words, tty=tty).returncode == code


def test_words_streams_and_input_arrive_as_they_are(server: Server) -> None:
    words = ["a b", "", "'", '"$HOME"', "`id`", "$(id)", "; true", "x\ny", "-n", "*", "\\", "ü", "--", "-lt"]
    assert run(server, "printf", "%s\\0", *words).stdout.decode().split("\0")[:-1] == words
    assert run(server, "cat", stdin=b"hello\0\xff" * 100_000).stdout == b"hello\0\xff" * 100_000
    ended = run(server, "sh", "-c", "echo out; echo err >&2")
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")
    assert run(server, "no-such-command").stderr.endswith(b"no-such-command: not found\n")


VALUES = {"HASH": "a#b", "QUOTE": "it's", "LINES": "a\nb", "QUOTED": "'x'", "EMPTY": "", "LAST": '$HOME \\ "é"'}


def test_a_variable_has_the_characters_of_the_profile(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "environment").write_text(render_exports(VALUES))
    prefix = ssh_commands._VARIABLES.replace(ENVIRONMENT_FILE, str(tmp_path / "environment"))
    monkeypatch.setattr(ssh_commands, "_VARIABLES", prefix)
    shown = "; ".join(f"printf '%s\\0' \"${name}\"" for name in VALUES)
    for words in (ssh(server, "sh", "-c", shown), ssh(server, "sh", "-c", shown, tty=True)):
        said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True).stdout
        assert said.decode().replace("\r\n", "\n").split("\0")[:-1] == list(VALUES.values())
    line = [*ssh(server, "x")[:-1], make_shell_line((shown,))]
    said = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True).stdout
    assert said.decode().split("\0")[:-1] == list(VALUES.values())


_MARKS = itertools.count(60000)


def find(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"sleep") and mark.encode() in words:
                found.append(int(entry.name))
    return found


def wait_until_there(mark: str, count: int) -> None:
    end = time.monotonic() + 15
    while len(find(mark)) != count:
        assert time.monotonic() < end, f"{len(find(mark))} processes and not {count}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize(
    ("line", "count"), [("exec sleep {0}", 1), ("sleep {0} & sleep {0}; true", 2)], ids=["command", "with children"]
)
def test_what_exec_has_started_ends_with_it(server: Server, line: str, count: int, number: int) -> None:
    # Seconds that no other process sleeps.
    mark = f"{next(_MARKS)}.{os.getpid()}"
    words = ("sh", "-c", line.format(mark))
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        ssh(server, *words), stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, preexec_fn=hear_signals
    ) as started:
        try:
            wait_until_there(mark, count)
            started.send_signal(number)
            started.wait(15)
        finally:
            started.kill()
    wait_until_there(mark, 0)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("8000", (8000, "127.0.0.1", 8000)),
        ("8001:8000", (8001, "127.0.0.1", 8000)),
        ("db:5432", (5432, "db", 5432)),
        ("localhost:8000", (8000, "localhost", 8000)),
        ("15432:db:5432", (15432, "db", 5432)),
    ],
)
def test_a_port_here_and_one_there(text: str, parsed: tuple[int, str, int]) -> None:
    assert parse_forward(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0",
        "65536",
        "8000:",
        ":8000",
        "1:2:3:4",
        "a:b:1",
        "8001:db:",
        "-1",
        "1:2:3",
        "8000:x",
        "[::1]:80",
        "a b:80",
        "-o:80",
        "x,y:80",
        "http//x:80",
    ],
)
def test_what_names_no_ports_is_refused(text: str) -> None:
    if text == "1:2:3":
        assert parse_forward(text) == (1, "2", 3)
        return
    with pytest.raises(UsageError, match="names no ports"):
        parse_forward(text)


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(HostError, match="Address already in use") as caught,
    ):
        require_free_port(taken.getsockname()[1])
    assert "LOCAL:PORT" in caught.value.hint
