"""Commands that name an instance reach it at its place, over two real sshd: that of the place, and one that stands in
for the guest."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import needs
from laboratory.far import FAR, Far

pytestmark = needs.SSHD


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """The sshd of the place is that of the guest as well: the name `demo` leads to it."""
    made = Far(tmp_path)
    text = (tmp_path / "ssh/client").read_text()
    (tmp_path / "ssh/guest").write_text(text.replace("Host far", "Host demo"))
    (tmp_path / "ssh/server").write_text((tmp_path / "ssh/server").read_text() + "Subsystem sftp internal-sftp\n")
    made.server.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    made.set(FAR_GUEST=str(tmp_path / "ssh/guest"))
    yield made
    made.stop()


def wait_for(condition: object, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.2)
    return False


def test_a_command_has_its_streams_and_its_exit_code(far: Far) -> None:
    raw = bytes(range(256)) * 4096
    command = [
        sys.executable,
        "-m",
        "ktrdr_vm",
        "exec",
        "--on",
        "far",
        "demo",
        "--",
        "sh",
        "-c",
        "cat; echo said >&2; exit 7",
    ]
    done = subprocess.run(command, input=raw, capture_output=True, env=far.environment(), timeout=60)
    assert done.returncode == 7 and done.stdout == raw and done.stderr == b"said\n"
    assert far.call("ssh", "--on", "far", "demo", "printf '%s|' \"a  b\" '$HOME'").strip() == "a  b|$HOME|"
    assert (
        far.call("exec", "--on", "far", "demo", "--", "printf", "%s|", "a  b", "$HOME", "--on", "x")
        == "a  b|$HOME|--on|x|"
    )


def test_it_is_found_by_the_records_of_requests(far: Far) -> None:
    far.set(FAR_SECONDS="60", FAR_GUEST=str(far.place / "ssh/guest"))
    far.call("exec", "demo", "true", code=2)
    assert "there is no instance" in far.said
    [request] = far.call("submit", "--on", "far", "--instance-id", "demo").split()
    assert wait_for(lambda: (far.home / "instances/demo/console.log").exists())
    assert far.call("exec", "demo", "echo", "there") == "there\n"
    assert far.call("logs", "demo") == "a line of the console\n"
    assert "run_started" in far.call("events", "demo")
    far.call("report", "demo", code=2)
    assert "the request is running" in far.said
    # What the place refuses is refused with its words and its code.
    far.call("escalations", "list", "demo", code=2)
    assert "there is no instance demo" in far.said
    far.call("cancel", request)
    assert wait_for(lambda: json.loads(far.call("queue", "--json"))[0]["state"] != "running")
    far.call("report", "demo", code=130)


def test_the_evidence_of_a_request_that_has_ended_is_fetched(far: Far) -> None:
    far.set(FAR_SECONDS="0")
    [request] = far.call("submit", "--on", "far", "--instance-id", "demo").split()
    far.call("watch", request)
    assert not (far.near / "runs/demo").exists()
    assert "PASSED  demo" in far.call("report", "demo")
    assert json.loads((far.near / "runs/demo/latest/report.json").read_text())["outcome"] == "passed"
    far.server.kill()
    assert "PASSED  demo" in far.call("report", "demo"), "what was fetched is read here"
    assert "task_finished" in far.call("events", "demo")
    # The stand-in has no Startability Gate, which a bundle needs: the refusal is that of this host.
    far.call("bundle", "demo", code=1)
    assert "no bundle" in far.said


def test_a_place_that_is_away_hides_no_evidence_of_before(far: Far) -> None:
    far.set(FAR_SECONDS="0")
    far.call("apply", "--on", "far", "--instance-id", "demo")
    far.set(FAR_SECONDS="60")
    far.call("submit", "--on", "far", "--instance-id", "demo")
    far.server.kill()
    assert "PASSED  demo" in far.call("report", "demo")
    assert "the newest run that was fetched" in far.said
    far.call("report", "--on", "far", "demo", code=3)


def test_commits_come_without_fetch(far: Far) -> None:
    far.set(FAR_SECONDS="0")
    [request] = far.call("submit", "--on", "far", "--instance-id", "demo").split()
    far.call("watch", request)
    [found] = json.loads(far.call("pull", "demo", "--json"))
    assert far.git("rev-parse", found["ref"]) == found["commit"]


def test_files_are_copied_both_ways(far: Far, tmp_path: Path) -> None:
    folder, there = tmp_path / "near files", tmp_path / "guest"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a b").write_bytes(bytes(range(256)))
    there.mkdir()
    far.call("cp", "--on", "far", str(folder), f"demo:{there}/")
    assert (there / "near files/inner/a b").read_bytes() == bytes(range(256))
    far.call("cp", "--on", "far", f"demo:{there}/near files/inner/a b", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == bytes(range(256))
    far.call("cp", "--on", "far", f"demo:{there}/missing", str(tmp_path / "none"), code=1)
    assert not (tmp_path / "none").exists()
    far.call("cp", "--on", "far", "here", "there", code=2)


def test_ports_are_forwarded(far: Far) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local, port = probe.getsockname()[1], server.getsockname()[1]
        probe.close()

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(connection.recv(100) * 1000)

        threading.Thread(target=answer, daemon=True).start()
        started = far.start("forward", "--on", "far", "demo", f"{local}:{port}")
        assert started.stderr is not None and f"http://127.0.0.1:{local}/" in started.stderr.readline()
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", local), timeout=30) as client:
                client.sendall(b"hello")
                data = b""
                while piece := client.recv(65536):
                    data += piece
                assert data == b"hello" * 1000
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=30)
        assert started.returncode == 130


def test_a_command_ends_with_its_client(far: Far, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    started = far.start("exec", "--on", "far", "demo", "--", "sh", "-c", f"echo $$ > {mark}; sleep 300")
    assert wait_for(lambda: mark.exists() and mark.read_text().strip())
    started.kill()
    started.communicate(timeout=30)
    pid = int(mark.read_text())
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20), "the command in the guest goes on"


def test_a_terminal_is_passed(far: Far) -> None:
    line = f"{sys.executable} -m ktrdr_vm exec -t --on far demo -- sh -c 'tty; stty size; exit 5'"
    done = subprocess.run(
        ["script", "-qec", f"stty rows 31 cols 77; {line}", "/dev/null"],
        capture_output=True,
        env=far.environment(),
        timeout=60,
    )
    said = done.stdout.decode()
    assert re.search(r"/dev/pts/\d+", said) and "31 77" in said and done.returncode == 5, said


def test_a_lost_place_and_another_release_are_sentences(far: Far) -> None:
    program = far.place / "ktrdr-vm"
    honest = program.read_text()
    program.write_text(honest.replace(str(FAR), str(FAR.with_name("far_release.py"))))
    far.call("escalations", "list", "--on", "far", "demo", code=2)
    assert "the versions do not fit" in far.said and "99.1.0" in far.said
    far.server.kill()
    far.call("escalations", "list", "--on", "far", "demo", code=3)
    assert "could not be reached" in far.said and "next:" in far.said


def test_what_a_hostile_place_prints_is_escaped_and_bounded(far: Far) -> None:
    program = far.place / "ktrdr-vm"
    program.write_text("#!/bin/sh\nprintf 'a\\033]0;x\\007\\n'; printf '\\033[2J' >&2; exit 4\n")
    assert "\x1b" not in far.call("escalations", "list", "--on", "far", "demo", code=4) + far.said
    assert "\\x1b[2J" in far.said
    before = far.git("for-each-ref")
    head = far.git("rev-parse", "HEAD")
    for text, code, said in (
        ('echo \'{"base_commit": "../../x"}\'', 2, "the base of the instance"),
        (f'echo \'{{"base_commit": "{"0" * 40}"}}\'', 2, "has no commit"),
        (f'echo \'{{"base_commit": "{head}"}}\'; echo garbage', 4, ""),
        ("echo '[1]'", 2, "the base of the instance"),
        (f'echo \'{{"base_commit": "{head}"}}\'; exit 9', 4, "exit code 9"),
    ):
        program.write_text(f"#!/bin/sh\n{text}\n")
        far.call("pull", "--on", "far", "demo", code=code)
        assert said in far.said, far.said
        assert far.git("for-each-ref") == before
    assert not far.near.exists() or not any(path.is_file() for path in far.near.rglob("*"))


def test_setup_says_what_a_place_lacks(far: Far) -> None:
    program = far.place / "ktrdr-vm"
    honest = program.read_text()
    program.write_text(
        honest.replace("exec $ENTER", '[ "$1" != doctor ] || { echo "missing  libvirt"; exit 3; }\nexec $ENTER')
    )
    out = far.call("places", "setup", "far", code=3)
    assert "ok       login" in out and "ok       version" in out and "missing  libvirt" in out
    program.unlink()
    out = far.call("places", "setup", "far", code=3)
    assert "missing  program" in out and "docs/hosts.md" in far.said
    (far.place / "ssh/authorized_keys").write_text("")
    out = far.call("places", "setup", "far", code=3)
    assert "missing  login" in out and "ssh-copy-id" in far.said
