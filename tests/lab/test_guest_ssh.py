"""`SshGuest` against a real sshd on the loopback address, and against servers that lie."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import needs

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.ssh import GuestTimeout, SshGuest, connect, generate_keypair

pytestmark = needs.SSHD
INSTANCE = "lab--ssh"


def hear_signals() -> None:
    """Under nohup, and in the background of a script, some are ignored, and what is ignored is inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Server:
    """A real sshd with keys of its own."""

    def __init__(self, place: Path) -> None:
        self.host_private, self.host_public = generate_keypair()
        self.user_private, self.user_public = generate_keypair()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        place.mkdir(mode=0o755)
        # For OpenSSH's own client.
        self.key = place / "user_key"
        self.key.touch(mode=0o600)
        self.key.write_text(self.user_private)
        (place / "host_key").write_text(self.host_private)
        (place / "host_key").chmod(0o600)
        (place / "authorized_keys").write_text(self.user_public + "\n")
        (place / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {place}/host_key\nAuthorizedKeysFile {place}/authorized_keys\n"
            f"PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\nUseDNS no\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        with (place / "log").open("w") as log:
            words = ["/usr/sbin/sshd", "-D", "-e", "-f", str(place / "config")]
            self.process = subprocess.Popen(words, stderr=log, preexec_fn=hear_signals)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def connect(self, **changes: object) -> SshGuest:
        settings = {"timeout": 20.0, "instance_id": INSTANCE} | changes
        pinned = str(settings.pop("pinned", self.host_public))
        key = str(settings.pop("key", self.user_private))
        return connect(("127.0.0.1", self.port), "root", key, pinned, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if os.geteuid() != 0:
        pytest.skip("sshd for a login needs root")
    made = Server(tmp_path_factory.mktemp("ssh") / "sshd")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def guest(server: Server) -> Iterator[SshGuest]:
    with server.connect() as connected:
        yield connected


def test_words_arrive_as_they_are(guest: SshGuest) -> None:
    words = ["a b", "", "'", '"$HOME"', "`id`", "$(id)", "; true", "x\ny", "-n", "*", "\\", "ü"]
    result = guest.run(["printf", "%s\\0", *words], timeout=10)
    assert result.stdout.decode().split("\0")[:-1] == words
    assert (result.exit_code, result.stderr, result.truncated) == (0, b"", False)


def test_line_exit_code_streams_and_directory(guest: SshGuest, tmp_path: Path) -> None:
    result = guest.run("pwd; echo oops >&2; exit 7", timeout=10, chdir=str(tmp_path))
    assert (result.exit_code, result.stdout, result.stderr) == (7, f"{tmp_path}\n".encode(), b"oops\n")
    assert guest.run("kill -9 $$", timeout=10).exit_code == 137
    assert guest.run("sh -c 'kill -9 $$'", timeout=10).exit_code == 137
    assert guest.run("echo 'open", timeout=10).exit_code != 0
    assert guest.run(["true"], timeout=10, chdir="/does/not/exist").exit_code == 1


def test_environment_is_delivered_and_stands_in_no_argv(guest: SshGuest) -> None:
    canary = "canary-'quoted'\nand a line"
    seen = guest.run(
        'printf "%s" "$CANARY"; cat /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" " " >&2',
        timeout=10,
        environment={"CANARY": canary},
    )
    assert seen.stdout.decode() == canary
    assert b"canary" not in seen.stderr
    with pytest.raises(GuestError):
        guest.run(["true"], timeout=5, environment={"A;id": "x"})


def test_input_reaches_the_command_only(guest: SshGuest) -> None:
    assert guest.run(["cat"], timeout=10, stdin=b"hello\0\xff").stdout == b"hello\0\xff"


def test_big_data_both_ways_at_once_does_not_block(guest: SshGuest) -> None:
    data = random.Random(1).randbytes(9 * 1024 * 1024)
    assert guest.run(["cat"], timeout=60, stdin=data).stdout == data


def test_output_is_cut_and_said_and_the_command_still_ends(guest: SshGuest) -> None:
    seen: list[int] = []
    result = guest.run(
        "head -c 5000000 /dev/zero", timeout=30, max_output=1000, on_output=lambda data: seen.append(len(data))
    )
    assert (len(result.stdout), result.truncated, result.exit_code) == (1000, True, 0)
    assert sum(seen) == 5_000_000


def test_endless_output_ends_with_the_limit_and_is_killed(guest: SshGuest) -> None:
    started = time.monotonic()
    with pytest.raises(GuestTimeout):
        guest.run("yes endless-yes", timeout=1, max_output=100)
    assert time.monotonic() - started < 20
    assert guest.run("pgrep -f '[e]ndless-yes'", timeout=10).stdout == b""


def test_a_flood_that_is_cut_off_does_not_cost_the_connection(guest: SshGuest) -> None:
    """Closing a channel under a flood lost the whole connection, now and then, while readiness was a pipe."""
    for _ in range(8):
        with pytest.raises(GuestTimeout):
            guest.run("yes flood", timeout=0.4, max_output=100)
    assert guest.run("echo here", timeout=10).stdout == b"here\n"


def test_overrun_kills_children_too(guest: SshGuest) -> None:
    with pytest.raises(GuestTimeout):
        guest.run("sleep 98761 & sleep 98762", timeout=1)
    time.sleep(0.3)
    assert guest.run("pgrep -f 'sleep 9876[12]'", timeout=10).stdout == b""


def test_a_background_child_does_not_hold_the_command_open(guest: SshGuest) -> None:
    started = time.monotonic()
    result = guest.run("sleep 20.31 & echo started", timeout=20)
    assert (result.stdout, result.exit_code) == (b"started\n", 0)
    assert time.monotonic() - started < 12


def test_many_channels_from_many_threads(guest: SshGuest) -> None:
    results: dict[int, bytes] = {}

    def one(number: int) -> None:
        results[number] = guest.run(["sh", "-c", f"sleep 0.2; echo {number}"], timeout=30).stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert results == {number: f"{number}\n".encode() for number in range(24)}


def test_upload_is_atomic_has_its_mode_and_download_brings_it_back(guest: SshGuest, tmp_path: Path) -> None:
    target = tmp_path / "a 'quoted' name"
    data = random.Random(2).randbytes(3_000_000)
    guest.upload(io.BytesIO(data), str(target), mode=0o640)
    assert (target.read_bytes(), target.stat().st_mode & 0o7777) == (data, 0o640)
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]
    sink = io.BytesIO()
    assert guest.download(str(target), sink, max_bytes=len(data)) == len(data)
    assert sink.getvalue() == data
    with pytest.raises(GuestError, match="more than"):
        guest.download(str(target), io.BytesIO(), max_bytes=len(data) - 1)
    with pytest.raises(GuestError):
        guest.upload(io.BytesIO(b"x"), str(tmp_path))


def test_download_takes_regular_files_only(guest: SshGuest, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/shadow")
    for name in (tmp_path / "fifo", tmp_path / "link", tmp_path, Path("/dev/zero"), tmp_path / "missing"):
        with pytest.raises(GuestError):
            guest.download(str(name), io.BytesIO(), max_bytes=1000, timeout=5)


def test_swapped_host_key_is_refused_at_once(server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError, match="an SSH host key other than"):
        server.connect(pinned=generate_keypair()[1])
    assert time.monotonic() - started < 10


def test_wrong_login_key_is_an_error_within_the_limit(server: Server) -> None:
    with pytest.raises(GuestError, match="within 2 s"):
        server.connect(key=generate_keypair()[0], timeout=2.0)


def test_waits_until_sshd_answers(tmp_path: Path) -> None:
    late: list[Server] = []
    made = Server(tmp_path / "late")
    made.process.terminate()
    made.process.wait(10)

    def start() -> None:
        time.sleep(0.7)
        late_process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "late" / "config")], stderr=subprocess.DEVNULL
        )
        made.process = late_process
        late.append(made)

    threading.Thread(target=start).start()
    try:
        with made.connect() as guest:
            assert guest.run(["id", "-u"], timeout=10).stdout == b"0\n"
    finally:
        made.process.terminate()
        made.process.wait(10)


def test_proceed_ends_the_waiting() -> None:
    def stop() -> None:
        raise GuestError("the domain died", hint="-")

    private, public = generate_keypair()
    with pytest.raises(GuestError, match="the domain died"):
        connect(("127.0.0.1", 1), "root", private, public, timeout=30, instance_id=INSTANCE, proceed=stop)


def test_guest_that_is_lost_midway_is_an_error_and_no_timeout(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made = Server(tmp_path / "lost")
    request.addfinalizer(made.stop)
    with made.connect() as guest:

        def cut() -> None:
            time.sleep(0.5)
            children = subprocess.run(
                ["pgrep", "-P", str(made.process.pid)], capture_output=True, text=True
            ).stdout.split()
            made.process.kill()
            for child in children:
                os.kill(int(child), 9)

        threading.Thread(target=cut).start()
        started = time.monotonic()
        with pytest.raises(GuestError, match="lost"):
            guest.run(["sleep", "8"], timeout=60)
        assert time.monotonic() - started < 10


def _endless_banner_line(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 4096)


def _endless_banner_lines(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"hello\r\n")
        time.sleep(0.01)


def _endless_data_after_banner(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-liar\r\n")
    while True:
        connection.sendall(b"\0" * 4096)


def _huge_packet(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-liar\r\n\x7f\xff\xff\xf0\x04")
    while True:
        connection.sendall(b"\0" * 65536)


def _never_closing(connection: socket.socket) -> None:
    while connection.recv(4096):
        time.sleep(0.01)


@pytest.mark.parametrize(
    "lie", [_endless_banner_line, _endless_banner_lines, _endless_data_after_banner, _huge_packet, _never_closing]
)
def test_lying_server_is_an_error_within_the_limit(lie: Callable[[socket.socket], None]) -> None:
    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=speak, args=(connection,), daemon=True).start()

    def speak(connection: socket.socket) -> None:
        with connection:
            try:
                lie(connection)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        private, public = generate_keypair()
        started, before = time.monotonic(), threading.active_count()
        with pytest.raises(GuestError, match="within 2 s"):
            connect(listener.getsockname(), "root", private, public, timeout=2, instance_id=INSTANCE)
        assert time.monotonic() - started < 15
        listener.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 5
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 1


@pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed")
def test_become_is_a_no_op_for_root(guest: SshGuest) -> None:
    assert guest.run(["id", "-u"], timeout=10, become=True).stdout == b"0\n"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_child_that_goes_on_printing_keeps_no_command_from_ending(guest: SshGuest, stream: int) -> None:
    began = time.monotonic()
    line = f"(n=0; while [ $n -lt 600 ]; do echo spam; n=$((n+1)); sleep 0.1; done) >&{stream} & echo three"
    result = guest.run(line, timeout=60)
    assert time.monotonic() - began < 30
    assert result.exit_code == 0 and b"three\n" in result.stdout and result.left_open


def test_what_comes_slowly_and_ends_is_whole(guest: SshGuest) -> None:
    result = guest.run("(for n in 1 2 3 4 5 6; do echo $n; sleep 0.2; done) & echo 0", timeout=60)
    assert sorted(result.stdout.split()) == [b"%d" % number for number in range(7)] and not result.left_open
