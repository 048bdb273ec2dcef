"""The far end of a command that names an instance: runs it where the instance is, on the streams of a connection."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Sequence
from importlib.metadata import version

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host import process
from ktrdr_vm.places.service import Service
from ktrdr_vm.places.wire import require_release

# Seconds between the signals to a command whose client has gone.
_HANG_UP = 10.0
_TARGET = re.compile(r"[A-Za-z0-9_.\[\]:-]{1,255}:[0-9]{1,5}")


def relay(service: Service, program: Sequence[str], release: str, instance_id: str, words: Sequence[str]) -> int:
    """Run `program` with these words, and return its exit code. UsageError if the client has another release.

    It is ended when the client has gone: without a terminal, sshd tells nobody.
    """
    require_release(release, version("ktrdr-vm"), "client")
    way = service.find_way(instance_id)
    child = process.start(
        [*way, *program, *words], environment=dict(os.environ), streams=process.Streams(0, 1, 2), new_session=False
    )
    # srun forwards SIGTERM to the step, and a SIGHUP would end srun alone.
    hang_up = signal.SIGTERM if way else signal.SIGHUP
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    # No event is asked for: the kernel reports a closed connection in any case.
    poll.register(1, 0)
    try:
        while child.poll() is None:
            if any(descriptor == 1 and event & (select.POLLERR | select.POLLHUP) for descriptor, event in poll.poll()):
                child.send_signal(hang_up)
                break
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        if not waiting.poll(_HANG_UP * 1000):
            child.kill()
    except KeyboardInterrupt:
        child.send_signal(hang_up)
        raise
    finally:
        os.close(ended)
    code = child.wait(_HANG_UP)
    return code if code >= 0 else 128 - code


def parse_target(target: str) -> tuple[str, ...]:
    """OpenSSH's options for a stream: `sftp`, or HOST:PORT as the guest knows it. UsageError for anything else."""
    if target == "sftp":
        return ("-s",)
    if not _TARGET.fullmatch(target) or target.startswith("-"):
        raise UsageError(f"{target!a:.80} is no target of a stream", where="stream", hint="name `sftp` or HOST:PORT")
    return ("-W", target)
