"""The identity of a fork, set before its network is up: through the guest agent, as a script on standard input.

All identifiers that forks would share are replaced here. Exceptions are the boot_id of the kernel and the engine id of
Docker, which are read at their start only.
"""

from __future__ import annotations

import base64
import os
import shlex
import time
import uuid
from dataclasses import dataclass

from ktrdr_vm.errors import GuestError, VmEndedError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.facts import Allocation

# Ten emulated guests share two cores.
SCRIPT_LIMIT = 300.0
_MAX_OUTPUT = 4096

# Under emulation every program that a script starts costs tens of milliseconds, so the scripts use builtins of the
# shell. What takes longest, the clock and the restart of sshd, runs beside the rest.
_IDENTITY = """set -e
date -u -s "@{now:.3f}" >/dev/null & clock=$!
# Added to the entropy of the kernel; the new generation id has already made it reseed.
printf '%s' {entropy} > /dev/urandom
umask 077
for old in /etc/ssh/ssh_host_*; do
  : > "$old"
done
printf '%s\\n' {host_key} > /etc/ssh/ssh_host_ed25519_key
printf '%s\\n' {host_public_key} > /etc/ssh/ssh_host_ed25519_key.pub
while IFS=: read -r name _ _ _ _ home _; do
  [ "$name" != {user} ] || break
done < /etc/passwd
keys=$home/.ssh/authorized_keys
if [ -f "$keys" ]; then
  printf '%s\\n' {login_public_key} > "$keys"
else
  [ -d "$home/.ssh" ] || mkdir "$home/.ssh"
  printf '%s\\n' {login_public_key} > "$keys"
  chown -R {user}: "$home/.ssh"
fi
# sshd reads its keys at start; SIGHUP restarts it in place. It may have just started.
turns=0
until [ -s /run/sshd.pid ]; do
  turns=$((turns + 1)); [ "$turns" -lt 500 ] || {{ echo 'sshd does not run' >&2; exit 1; }}
  sleep 0.02
done
read -r pid < /run/sshd.pid
kill -HUP "$pid"
umask 022
printf '%s\\n' {machine_id} > /etc/machine-id
printf '%s\\n' {name} > /etc/hostname
printf '%s\\n' {name} > /proc/sys/kernel/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' {name} > /etc/hosts
wait "$clock"
"""


def begin_identity(libvirt: Libvirt, domain: str, identity: Identity, user: str, allocation: Allocation) -> Script:
    """Let the guest set hostname, machine-id, SSH host key, the one login, entropy and clock. `finish` of the result
    waits for it."""
    # The time is read after the agent has answered.
    wait_agent(libvirt, domain)
    script = _IDENTITY.format(
        now=time.time(),
        entropy=os.urandom(512).hex(),
        machine_id=uuid.uuid4().hex,
        name=shlex.quote(identity.instance_id),
        host_key=shlex.quote(allocation.host_key.strip()),
        host_public_key=shlex.quote(allocation.host_public_key),
        login_public_key=shlex.quote(allocation.login_public_key),
        user=shlex.quote(user),
    )
    return begin_script(libvirt, domain, script, "set its identity")


def wait_agent(libvirt: Libvirt, domain: str, *, limit: float = SCRIPT_LIMIT) -> None:
    """Wait until the guest agent answers."""
    end = time.monotonic() + limit
    while libvirt.agent(domain, "guest-ping") is None:
        _check(libvirt, domain, end, "answer", "the guest agent does not answer")
        # A guest that has not opened its channel yet notices nothing of the question.
        time.sleep(0.01)


def run_script(libvirt: Libvirt, domain: str, script: str, doing: str, *, limit: float = SCRIPT_LIMIT) -> str:
    """Run a script as root through the agent, which may still be starting; return its output. The script is not in an
    argv."""
    return begin_script(libvirt, domain, script, doing, limit=limit).finish()


@dataclass(frozen=True)
class Script:
    """A script that runs in the guest. `doing` says for errors what it does; `end` is its limit on the monotonic
    clock."""

    libvirt: Libvirt
    domain: str
    pid: int
    doing: str
    end: float

    def finish(self) -> str:
        """Wait for its end and return its output. GuestError if it fails, or runs into its limit."""
        # The usual script has ended after two or three of them, in an emulated guest and in a fast one.
        wait = 0.045
        while True:
            status = self.libvirt.agent(self.domain, "guest-exec-status", {"pid": self.pid})
            if isinstance(status, dict) and status.get("exited") is True:
                output = _decode(status.get("out-data"))
                if status.get("exitcode") != 0:
                    raise GuestError(
                        f"the guest could not {self.doing}: {(_decode(status.get('err-data')) or output)[-500:]}",
                        where=self.domain,
                        hint="`apply --cold` boots without the template",
                    )
                return output
            _check(self.libvirt, self.domain, self.end, self.doing, "the time limit was exceeded")
            # Every request costs the guest CPU time, under emulation about 30 ms.
            time.sleep(wait)
            wait = min(wait + 0.005, 1.0)


def begin_script(libvirt: Libvirt, domain: str, script: str, doing: str, *, limit: float = SCRIPT_LIMIT) -> Script:
    """Start a script as root through the agent, which may still be starting. The script is not in an argv."""
    end = time.monotonic() + limit
    arguments = {
        "path": "/bin/sh",
        "arg": ["-s"],
        "input-data": base64.b64encode(script.encode()).decode(),
        "capture-output": True,
    }
    while True:
        # Sent once, with a wait: a repeated request after a late answer would run the script twice.
        started = libvirt.agent(domain, "guest-exec", arguments, timeout=max(int(end - time.monotonic()), 1))
        pid = started.get("pid") if isinstance(started, dict) else None
        if isinstance(pid, int):
            return Script(libvirt, domain, pid, doing, end)
        _check(libvirt, domain, end, doing, "the guest agent does not answer")
        time.sleep(0.05)


def _check(libvirt: Libvirt, domain: str, end: float, doing: str, why: str) -> None:
    """Raise VmEndedError if the VM has ended, and GuestError after `end`."""
    facts = libvirt.find(domain)
    if facts is None or not facts.state.is_alive:
        raise VmEndedError(
            f"the VM ended before the guest could {doing}: QEMU has exited, or the guest powered off",
            where=domain,
            hint="run the command again; if it ends again, read its console.log and the host's `dmesg`",
        )
    if time.monotonic() > end:
        raise GuestError(f"the guest did not {doing}: {why}", where=domain, hint="check its console.log")


def _decode(data: object) -> str:
    try:
        return base64.b64decode(data)[-_MAX_OUTPUT:].decode("utf-8", "replace") if isinstance(data, str) else ""
    except ValueError:
        return ""
