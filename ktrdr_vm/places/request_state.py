"""The state of a request, read from the files in its folder alone: whoever can read the folder sees the same state."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.places.filenames import ATTEMPTS, CANCEL, LEASE, OUTCOME, STARTED
from ktrdr_vm.places.request import Request

_MAX_OUTCOME = 64 * 1024
# A request whose process did not begin in this time will not.
_START_LIMIT = 60.0
# Exit codes of an attempt after which its request is tried again: the host lacked something, or the VM could not be
# made.
RETRIED = (3, 4)

State = Literal["waiting", "running", "finished", "lost", "cancelled"]


@dataclass(frozen=True)
class RequestState:
    """The state of a request. `attempt` is the newest, 0 before the first; `run_id`, `outcome` and `exit_code` are
    those of its end."""

    request_id: str
    instance_id: str
    who: str
    state: State
    created_at: str
    attempt: int = 0
    node: str = ""
    why: str = ""
    outcome: str = ""
    exit_code: int = 0
    run_id: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in ("finished", "cancelled", "lost")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_state(folder: Path, request: Request) -> RequestState:
    """The state of the request in `folder`."""
    said: dict[str, Any] = {
        "request_id": request.request_id,
        "instance_id": request.instance_id,
        "who": request.who,
        "created_at": request.created_at,
    }
    number = count_attempts(folder)
    if (early := read_outcome(folder)) is not None:
        return RequestState(
            **said, state="cancelled", attempt=number, outcome=early["outcome"], exit_code=early["exit_code"]
        )
    started = read_json(folder / STARTED)
    if number == 0:
        late = started.get("kind") == "process" and time.time() - float(started.get("at", 0)) > _START_LIMIT
        why = "it was started and did not begin; output.log there says why" if late else ""
        return RequestState(**said, state="lost" if late else "waiting", why=why, exit_code=4 if late else 0)
    attempt = folder / ATTEMPTS / str(number)
    lease, outcome = read_json(attempt / LEASE), read_outcome(attempt)
    said |= {"attempt": number, "node": str(lease.get("node", ""))}
    if outcome is not None:
        retried = outcome["exit_code"] in RETRIED and number < request.attempts and not (folder / CANCEL).exists()
        words = {"outcome": outcome["outcome"], "exit_code": outcome["exit_code"], "run_id": outcome["run_id"]}
        why = f"attempt {number} ended with exit code {outcome['exit_code']}; it is tried again" if retried else ""
        return RequestState(**said, state="waiting" if retried else "finished", why=why, **words)
    if is_alive(attempt, lease, request.grace):
        return RequestState(**said, state="running")
    if number < request.attempts and started.get("kind") == "job":
        return RequestState(**said, state="waiting", why=f"attempt {number} was lost; it is tried again")
    return RequestState(**said, state="lost", why=f"attempt {number} was lost", exit_code=4)


def count_attempts(folder: Path) -> int:
    """The number of the newest attempt of the request in `folder`; 0 before the first."""
    attempts = folder / ATTEMPTS
    names = [path.name for path in attempts.iterdir()] if attempts.is_dir() else []
    return max((int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 4), default=0)


def find_silence(folder: Path) -> float:
    """Seconds since the request in `folder` was started, and since its newest attempt appended to its lease."""
    number = count_attempts(folder)
    attempt = folder / ATTEMPTS / str(number)
    signs = [folder / STARTED, *([attempt, attempt / LEASE] if number else [])]
    times = [0.0]
    for path in signs:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times)


def is_alive(attempt: Path, lease: dict[str, Any], grace: int) -> bool:
    """True if the attempt appended to its lease within `grace` seconds, and its process exists where that can be
    asked."""
    try:
        age = time.time() - (attempt / LEASE).stat().st_mtime
    except OSError:
        return (time.time() - attempt.stat().st_mtime) < grace
    pid = lease.get("pid")
    if (
        lease.get("node") == os.uname().nodename
        and lease.get("pid_namespace") == find_pid_namespace()
        and type(pid) is int
        and pid > 1
    ):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
    return age < grace


def find_pid_namespace() -> str:
    """A name of the PID namespace of this process; empty where there are none."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the first line of a file; empty if there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        data = json.loads(file.readline(_MAX_OUTCOME))
        return data if isinstance(data, dict) else {}
    return {}


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How an attempt or a request ended; None before that."""
    data = read_json(folder / OUTCOME)
    if (
        isinstance(data.get("outcome"), str)
        and isinstance(data.get("exit_code"), int)
        and isinstance(data.get("run_id"), str)
    ):
        return data
    return None


def write_outcome(folder: Path, content: dict[str, Any]) -> None:
    write_durably(folder / OUTCOME, (json.dumps({"schema_version": 1, **content}) + "\n").encode())
