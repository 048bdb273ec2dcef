"""The guard: one process for each instance that carries every byte which leaves it, and records every decision.

    guard (root: listeners, nft writer, ledger, children)
    ├── resolver (own user, no privilege): reads the guest's DNS
    ├── haproxy  (own user, no privilege): reads the guest's HTTP and TLS
    └── nft monitor: says at once when another program touches the firewall

It is a process of its own because it must outlive the command that made the instance. It holds a lock while it lives; that lock,
and not a PID file, says whether it is there. Its children die with it, and then nothing answers: it fails closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.children import bind_early, die_with, drop_privileges, listen_unix
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy_log import parse_proxy_line
from ktrdr_vm.egress.resolver import run_resolver
from ktrdr_vm.egress.rules import rules_from_json
from ktrdr_vm.egress.sets import AllowSets
from ktrdr_vm.errors import KtrdrError, ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.nft import keep_rules, list_table, load_ruleset, read_table
from ktrdr_vm.plan.facts import DNS_PORT, HTTP_PORT, OTHER_PORT, TLS_PORT

POLL = 1.0
_LINE_LIMIT = 16 * 1024
_RESTARTS_PER_MINUTE = 20


class Guard:
    """The supervisor's loop. `directory` is the instance's guard folder with guard.json, egress.json and proxy.cfg."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: dict[str, Any] = json.loads((directory / "guard.json").read_bytes())
        policy = json.loads((directory / "egress.json").read_bytes())
        self.resolver_config = {"policy": policy, "exceptions": self.config["exceptions"]}
        self.sets = AllowSets(self.config["table"], rules_from_json(policy, self.config["exceptions"]))
        self.ledger = Ledger(Path(self.config["ledger"]), self.config["instance_id"])
        self.selector = selectors.DefaultSelector()
        self.running = True
        self._restarts: list[float] = []
        gateway = self.config["gateway"]
        self.udp = bind_early(socket.SOCK_DGRAM, gateway, DNS_PORT)
        self.tcp = bind_early(socket.SOCK_STREAM, gateway, DNS_PORT)
        self.proxy_sockets = {
            "KTRDR_FD_HTTP": bind_early(socket.SOCK_STREAM, gateway, HTTP_PORT),
            "KTRDR_FD_TLS": bind_early(socket.SOCK_STREAM, gateway, TLS_PORT),
            "KTRDR_FD_OTHER": bind_early(socket.SOCK_STREAM, gateway, OTHER_PORT),
            "KTRDR_FD_STATS": listen_unix(directory / "stats.sock"),
        }
        self.control = listen_unix(directory / "control.sock")
        self.resolver_pid = 0
        self.channel: socket.socket | None = None
        self.proxy: subprocess.Popen[bytes] | None = None
        self.monitor: subprocess.Popen[bytes] | None = None
        self.libvirt = Libvirt()
        self.expected = read_table(self.config["table"])
        self._proxy_line = b""

    def run(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: self._reap(wake_read))
        self.selector.register(self.control, selectors.EVENT_READ, self._serve_control)
        self._start_resolver()
        self._start_proxy()
        self._start_monitor()
        self.ledger.write("guard", "note", message="started")
        next_poll = time.monotonic() + POLL
        while self.running:
            for key, _ in self.selector.select(max(0.0, next_poll - time.monotonic())):
                callback: Callable[[], None] = key.data
                callback()
            if time.monotonic() >= next_poll:
                self._poll()
                next_poll = time.monotonic() + POLL
        self._poll()
        self._end_children()
        self.ledger.write("guard", "note", message="stopped")
        self.ledger.close()

    def _stop(self) -> None:
        self.running = False

    # -- children ---------------------------------------------------------------------------------------------------

    def _start_resolver(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                keep = {self.udp.fileno(), self.tcp.fileno(), theirs.fileno(), 2}
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                for descriptor in range(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 4096 else 4096):
                    if descriptor not in keep:
                        with contextlib.suppress(OSError):
                            os.close(descriptor)
                drop_privileges(int(self.config["resolver_uid"]), parent)
                run_resolver(self.resolver_config, self.udp, self.tcp, theirs)
            except BaseException as error:
                print(f"resolver: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            finally:
                os._exit(1)
        theirs.close()
        ours.setblocking(False)
        self.resolver_pid, self.channel = pid, ours
        self.selector.register(ours, selectors.EVENT_READ, self._serve_resolver)

    def _start_proxy(self) -> None:
        uid, parent = int(self.config["proxy_uid"]), os.getpid()
        descriptors = [one.fileno() for one in self.proxy_sockets.values()]
        self.proxy = process.start(
            ["haproxy", "-db", "-f", self.directory / "proxy.cfg"],
            environment={name: str(one.fileno()) for name, one in self.proxy_sockets.items()},
            pass_fds=descriptors,
            stdout=subprocess.PIPE,
            stderr=2,
            user=uid,
            group=uid,
            in_child=lambda: die_with(parent),
            new_session=False,
        )
        assert self.proxy.stdout is not None
        os.set_blocking(self.proxy.stdout.fileno(), False)
        self.selector.register(self.proxy.stdout, selectors.EVENT_READ, self._read_proxy_log)

    def _start_monitor(self) -> None:
        """nft's own events: what somebody does to the tables is known within milliseconds, not at the next look."""
        parent = os.getpid()
        self.monitor = process.start(
            ["nft", "monitor"], stdout=subprocess.PIPE, stderr=2, in_child=lambda: die_with(parent), new_session=False
        )
        assert self.monitor.stdout is not None
        os.set_blocking(self.monitor.stdout.fileno(), False)
        self.selector.register(self.monitor.stdout, selectors.EVENT_READ, self._read_monitor)

    def _read_monitor(self) -> None:
        assert self.monitor is not None and self.monitor.stdout is not None
        try:
            events = os.read(self.monitor.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return
        # Elements come and go by themselves; a table, chain, rule or set of ours does not.
        name = self.config["table"].encode()
        if any(name in line and b" element " not in line for line in events.split(b"\n")):
            self._check_table()

    def _reap(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        if not self.running:
            return
        if self.resolver_pid and os.waitpid(self.resolver_pid, os.WNOHANG)[0]:
            assert self.channel is not None
            self.selector.unregister(self.channel)
            self.channel.close()
            self._restart("the resolver", self._start_resolver)
        if self.proxy is not None and self.proxy.poll() is not None:
            assert self.proxy.stdout is not None
            self.selector.unregister(self.proxy.stdout)
            self.proxy.stdout.close()
            self._restart("the proxy", self._start_proxy)
        if self.monitor is not None and self.monitor.poll() is not None:
            assert self.monitor.stdout is not None
            self.selector.unregister(self.monitor.stdout)
            self.monitor.stdout.close()
            self._restart("the watch over nftables", self._start_monitor)

    def _restart(self, what: str, start: Callable[[], None]) -> None:
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if now - moment < 60] + [now]
        if len(self._restarts) > _RESTARTS_PER_MINUTE:
            # Closed is better than a loop; `status` and the run see that the guard is gone.
            self.ledger.write("guard", "note", message=f"{what} ended too often; the guard stops and nothing leaves")
            self._stop()
            return
        self.ledger.write("guard", "note", message=f"{what} ended and was started again")
        start()

    def _end_children(self) -> None:
        children = (self.resolver_pid, self.proxy.pid if self.proxy else 0, self.monitor.pid if self.monitor else 0)
        for pid in filter(None, children):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    # -- what they say ----------------------------------------------------------------------------------------------

    def _serve_resolver(self) -> None:
        assert self.channel is not None
        try:
            packet = self.channel.recv(65536)
        except (BlockingIOError, ConnectionError):
            return
        if not packet:
            return  # it ended; SIGCHLD says so too
        try:
            message = json.loads(packet)
            if "note" in message:
                kind, verdict, fields = message["note"]
                if kind == "dns" and verdict in ("allow", "deny"):
                    self.ledger.write("dns", verdict, **{str(key): value for key, value in fields.items()})
                if message.get("lost"):
                    self.ledger.write("dns", "deny", rule="suppressed", count=int(message["lost"]))
                return
            name, addresses, ttl = message["allow"]
            accepted = self.sets.allow(str(name), [str(address) for address in addresses], int(ttl))
            self.channel.send(json.dumps({"number": int(message["number"]), "accepted": accepted}).encode())
        except (ValueError, KeyError, TypeError, KtrdrError, OSError) as error:
            self.ledger.write("guard", "note", message=f"the resolver's request was refused: {type(error).__name__}: {error}"[:300])

    def _read_proxy_log(self) -> None:
        assert self.proxy is not None and self.proxy.stdout is not None
        try:
            data = os.read(self.proxy.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        *lines, self._proxy_line = (self._proxy_line + data).split(b"\n")
        if len(self._proxy_line) > _LINE_LIMIT:
            self._proxy_line = b""
        for line in lines:
            self._record_proxy(line)

    def _record_proxy(self, line: bytes) -> None:
        fields = parse_proxy_line(line)
        if fields is None:
            return
        if not fields["name"]:
            fields["name"] = self.sets.owners.get(fields["address"], "")
        self.ledger.write(fields.pop("kind"), fields.pop("verdict"), **fields)

    def _poll(self) -> None:
        try:
            entries = list_table(self.config["table"])
            # The events come first; this is for one that was missed, such as before the watch had begun.
            if entries is None or keep_rules(entries) != self.expected:
                self._check_table()
                return
            drops = self.sets.read_drops(entries)
        except (KtrdrError, ValueError, KeyError) as error:
            self.ledger.write("guard", "note", message=f"the table cannot be read: {error}"[:300])
            return
        for drop in drops:
            self.ledger.write(
                "drop",
                "deny",
                name=self.sets.owners.get(drop.address, ""),
                address=drop.address,
                port=drop.port,
                protocol=drop.protocol,
                rule=drop.rule,
                count=drop.count,
            )
        self.ledger.flush()

    def _check_table(self) -> None:
        """Another program changed nftables. If it touched our rules, the guest stands still until they are back."""
        began = time.monotonic()
        try:
            if read_table(self.config["table"]) == self.expected:
                return
            domain = self.config["domain"]
            paused = self._try("pause the guest", lambda: self._pause(domain))
            load_ruleset(self.directory / "ruleset.nft")
            self.sets.refill()
            if paused:
                self._try("resume the guest", lambda: self.libvirt.resume(domain))
            milliseconds = round((time.monotonic() - began) * 1000)
            message = (
                f"another program changed the firewall; the guest {'was paused' if paused else 'could not be paused'}, the rules are back"
            )
            self.ledger.write("guard", "note", rule="table", message=message, ms=milliseconds)
        except KtrdrError as error:
            # The routing rule still forwards nothing; the next look tries again.
            self.ledger.write("guard", "note", rule="table", message=f"the firewall is not as it must be: {error}"[:300])

    def _pause(self, domain: str) -> None:
        facts = self.libvirt.find(domain)
        if facts is None or facts.state != "running":
            raise ProvisionError(
                f"it is {facts.state if facts else 'not there'}", where=domain, hint="a guest that does not run sends nothing"
            )
        self.libvirt.suspend(domain)

    def _try(self, what: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except KtrdrError as error:
            self.ledger.write("guard", "note", rule="table", message=f"could not {what}: {error.message}"[:300])
            return False
        return True

    # -- what the commands ask --------------------------------------------------------------------------------------

    def _serve_control(self) -> None:
        connection, _ = self.control.accept()
        with connection:
            connection.settimeout(1)
            try:
                request = json.loads(connection.recv(65536))
                reply = self._answer_control(request)
            except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(reply).encode() + b"\n")

    def _answer_control(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "status":
            return {"pid": os.getpid(), "resolver": self.resolver_pid, "proxy": self.proxy.pid if self.proxy else 0}
        if request["op"] == "flush":
            self._poll()
            return {"ok": True}
        return {"error": f"unknown request {request['op']!r}"}


def main() -> None:
    """`python -m ktrdr_vm.egress.guard DIRECTORY`. Descriptor 1 is a pipe: a line on it says that the guard serves."""
    directory = Path(sys.argv[1])
    lock = os.open(directory / "guard.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    guard = Guard(directory)
    os.write(1, b"ready\n")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    guard.run()


if __name__ == "__main__":
    main()
