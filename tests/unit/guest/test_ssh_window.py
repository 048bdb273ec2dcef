"""A server that keeps to no window: what nobody reads is bounded all the same. paramiko on both ends, over the loopback
address."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED, cMSG_CHANNEL_DATA

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.ssh import SshGuest, connect, generate_keypair

_FLOOD = 300 * 1024 * 1024


# Every packet length from the first that is refused to the largest that the field holds.
_LENGTHS = [0xFFFFFF00, 0x7FFFFF00, 1 << 24, (256 << 10) + 64]
# What is sent of such a packet, at most.
_SENT = 64 * 1024 * 1024


class _Flooder(paramiko.ServerInterface):
    """Ends the first command as it should; to the second it sends what it likes, or one packet of `length` bytes."""

    def __init__(self, length: int = 0) -> None:
        self.commands = 0
        self.length = length
        self.sent = 0

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.commands += 1
        act = self._end if self.commands == 1 else self._announce if self.length else self._flood
        threading.Thread(target=act, args=(channel,), daemon=True).start()
        return True

    def _announce(self, channel: paramiko.Channel) -> None:
        """The length of a packet stands in clear before what is encrypted of it, with the MACs that we take."""
        assert channel.transport is not None
        outer = channel.transport.sock
        with contextlib.suppress(OSError):
            outer.sendall(self.length.to_bytes(4, "big"))
            while self.sent < min(self.length, _SENT):
                outer.sendall(bytes(65536))
                self.sent += 65536

    @staticmethod
    def _end(channel: paramiko.Channel) -> None:
        time.sleep(0.1)
        channel.send_exit_status(0)
        channel.close()

    @staticmethod
    def _flood(channel: paramiko.Channel) -> None:
        transport: Any = channel.transport
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_DATA)
        message.add_int(channel.remote_chanid)
        message.add_string(bytes(32000))
        for _ in range(_FLOOD // 32000):
            if not transport.is_active():
                return
            with contextlib.suppress(EOFError, OSError):
                transport._send_user_message(message)
        channel.send_exit_status(0)
        channel.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> _Flooder:
    return _Flooder(getattr(request, "param", 0))


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch, server: _Flooder) -> Iterator[SshGuest]:
    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        made = socket.socket()
        made.settimeout(timeout)
        made.connect(address)
        return made

    # As it is without a look for a name.
    monkeypatch.setattr(socket, "create_connection", dial)
    private, public = generate_keypair()
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(private))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            transport = paramiko.Transport(listener.accept()[0])
            transport.add_server_key(key)
            transport.start_server(server=server)

        threading.Thread(target=serve, daemon=True).start()
        with connect(listener.getsockname(), "root", private, public, timeout=30, instance_id="one") as guest:
            yield guest


def test_what_is_not_read_in_time_does_not_fill_the_hosts_memory(guest: SshGuest) -> None:
    """paramiko takes what comes beyond its window: without the bound all 300 MB lie in memory, and so would a
    terabyte."""
    most = 0

    def read_slowly(_: bytes) -> None:
        nonlocal most
        most = max(most, guest.count_unread())
        time.sleep(0.1)

    with pytest.raises(GuestError, match="the connection to the guest was lost") as caught:
        guest.run(["flood"], timeout=60, max_output=0, on_output=read_slowly)
    assert most < 80 << 20
    assert "exceeded its limit" not in str(caught.value)


@pytest.mark.parametrize("server", _LENGTHS, indirect=True, ids=hex)
def test_a_packet_longer_than_any_that_ssh_sends_ends_the_connection(guest: SshGuest, server: _Flooder) -> None:
    """Without the bound paramiko collects what arrives of it, and copies all of it for each piece."""
    began = time.monotonic()
    with pytest.raises(GuestError, match="the connection to the guest was lost"):
        guest.run(["announce"], timeout=30)
    assert time.monotonic() - began < 10
    time.sleep(0.3)
    assert server.sent < 16 << 20


# What a server may send in place of the first packet, after its banner.
_NO_PACKETS = [
    bytes.fromhex("00000004 0c e70000 00000000"),  # only padding
    bytes.fromhex("0000000c ff 14") + bytes(10),  # more padding than packet
    bytes.fromhex("0000000c 0a 14") + bytes(10),  # KEXINIT without its lists
    bytes.fromhex("0000000c 0a 01") + b"\xff" * 10,
    b"\x00" * 64,
    b"\xff" * 64,
]


@pytest.mark.parametrize("packet", _NO_PACKETS, ids=range(len(_NO_PACKETS)))
def test_what_is_no_packet_is_an_error_of_the_guest(monkeypatch: pytest.MonkeyPatch, packet: bytes) -> None:
    """paramiko's thread ends with IndexError, struct.error or another one, and hands it to whoever waits."""

    def dial(_namespace: str, address: tuple[str, int], timeout: float) -> socket.socket:
        made = socket.socket()
        made.settimeout(timeout)
        made.connect(address)
        return made

    monkeypatch.setattr("ktrdr_vm.host.netns.connect", dial)
    private, public = generate_keypair()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as one:
                        one.sendall(b"SSH-2.0-x\r\n" + packet)
                        time.sleep(0.1)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(GuestError, match="did not answer over SSH"):
            connect(listener.getsockname(), "root", private, public, timeout=1, instance_id="one")
