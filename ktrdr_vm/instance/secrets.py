"""The secrets in a running guest: removed before it is suspended, and when its profile no longer contains them."""

from __future__ import annotations

import re
import time

from ktrdr_vm.guest.agent import run_script
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.base import Notify, quiet
from ktrdr_vm.instance.resources.secret import sweep_secrets


def remove_secrets(loaded: LoadedInstance, notify: Notify = quiet) -> list[str]:
    """Remove every secret from the running guest; returns their keys. ProvisionError when one remains or the guest does
    not answer."""
    removed = []
    for resource in reversed(loaded.open_secrets()):
        began = time.monotonic()
        resource.remove()
        notify(resource.kind, resource.name, "removed", time.monotonic() - began)
        removed.append(resource.key)
    sweep_secrets(loaded.connect())
    return removed


# The processes of sshd that carry this connection, not the one that listens, whose parent is the first process.
_FIND_CARRIERS = """p=$$
while [ "$p" -gt 1 ]; do
  read -r name < /proc/$p/comm
  above=1
  while read -r key value; do [ "$key" != PPid: ] || above=$value; done < /proc/$p/status
  case $name in sshd*) [ "$above" -le 1 ] || echo "$p" ;; esac
  p=$above
done"""
_WAIT_FOR = """for turn in $(seq 600); do
  left=
  for pid in {pids}; do [ ! -d /proc/$pid ] || left=$pid; done
  [ -n "$left" ] || exit 0
  sleep 0.1
done
echo "sshd has not ended the connection" >&2
exit 1"""


def end_connection(loaded: LoadedInstance) -> None:
    """Close the SSH connection, and wait until the guest has ended the processes that carried it.

    While they run, their memory contains the keys of the connection and what was sent over it, secrets among it.
    GuestError if they do not end. A guest without an agent is not waited for.
    """
    found = loaded.connect().run(_FIND_CARRIERS, timeout=60).stdout.decode("ascii", "replace").split()
    loaded.close()
    domain = loaded.identity.domain
    # The guest's answer is not trusted: it becomes a part of a script.
    pids = [one for one in found if re.fullmatch(r"[0-9]{1,7}", one)]
    if pids and loaded.libvirt.agent(domain, "guest-ping") is not None:
        run_script(loaded.libvirt, domain, _WAIT_FOR.format(pids=" ".join(pids)), "end its SSH connection", limit=90)


def remove_secret(loaded: LoadedInstance, name: str) -> None:
    """Remove one secret from the running guest and from the journal."""
    for resource in loaded.open_secrets():
        if resource.name == name:
            resource.remove()
            loaded.journal.strike(resource.key)
