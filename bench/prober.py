"""The one outside prober: how long until a guest answers, whoever made it. It knows an address, a user and a key.

Ready is an authenticated command that answered over SSH; Docker is ready when its API answers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import paramiko

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import netns

POLL_S = 0.03
LIMIT_S = 900.0
# One question, asked in the guest until it is answered, so that asking costs every guest the same.
_DOCKER = (
    "sudo -n sh -c 'until curl -sf --unix-socket /run/docker.sock http://docker/_ping >/dev/null; do sleep 0.05; done'"
)

logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


@dataclass(frozen=True)
class Way:
    """How a guest is reached. `key` is the private half of its login."""

    address: str
    user: str
    key: str
    namespace: str = ""
    """The network namespace that the address is of."""
    port: int = 22


@dataclass
class Watch:
    """Seconds since `began` (monotonic), as they become known; `handshake` is the successful attempt alone."""

    began: float
    ssh: float = 0.0
    docker: float = 0.0
    handshake: float = 0.0
    error: str = ""
    _thread: threading.Thread | None = field(default=None, repr=False)

    @property
    def ready(self) -> float:
        """SSH and Docker both."""
        return max(self.ssh, self.docker)

    def wait(self) -> Watch:
        assert self._thread is not None
        self._thread.join()
        if self.error:
            raise RuntimeError(self.error)
        return self


def watch(find: Callable[[], Way | None], began: float, *, docker: bool = True, limit: float = LIMIT_S) -> Watch:
    """Ask from now on, in a thread of its own. `find` says the way in as soon as it is known, from outside as well."""
    seen = Watch(began)

    def work() -> None:
        try:
            client = _reach(find, seen, began + limit)
            with contextlib.closing(client):
                if docker:
                    _, out, _ = client.exec_command(_DOCKER, timeout=limit)
                    if out.channel.recv_exit_status() != 0:
                        raise RuntimeError("Docker could not be asked in the guest")
                    seen.docker = time.monotonic() - began
        except Exception as error:  # whatever it was, the one who waits is told
            seen.error = f"{type(error).__name__}: {error}"

    seen._thread = threading.Thread(target=work, daemon=True)
    seen._thread.start()
    return seen


def _reach(find: Callable[[], Way | None], seen: Watch, end: float) -> paramiko.SSHClient:
    last: object = "nothing listened"
    while time.monotonic() < end:
        way = find()
        if way is not None:
            tried = time.monotonic()
            try:
                client = attempt(way)
            except (OSError, EOFError, paramiko.SSHException, KtrdrError) as error:
                last = error
            else:
                now = time.monotonic()
                seen.ssh, seen.handshake = now - seen.began, now - tried
                return client
        time.sleep(POLL_S)
    raise TimeoutError(f"no authenticated command answered: {last}")


def attempt(way: Way) -> paramiko.SSHClient:
    """One try; a connection on which a command has been answered."""
    plain = netns.connect(way.namespace, (way.address, way.port), 0.25)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    try:
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(way.key))
        client.connect(
            way.address,
            username=way.user,
            pkey=key,
            sock=plain,
            look_for_keys=False,
            allow_agent=False,
            timeout=30,
            banner_timeout=30,
        )
        _, out, _ = client.exec_command("true", timeout=30)
        if out.channel.recv_exit_status() != 0:
            raise OSError("`true` failed")
    except BaseException:
        client.close()
        plain.close()
        raise
    return client
