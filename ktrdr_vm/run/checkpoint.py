"""The checkpoint of a run that stopped at an escalation, from which `apply --continue` continues in another process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.report.decode import decode
from ktrdr_vm.report.model import GateResult
from ktrdr_vm.run.listener import Keep


@dataclass(frozen=True)
class Stop:
    """The options of the command line, the run, and its results so far."""

    profile: str
    workspace: str
    gates: tuple[str, ...]
    keep: Keep
    cold: bool
    run_id: str
    started_at: str
    plan_digest: str
    results: tuple[GateResult, ...]


def write_stop(instance: Instance, stop: Stop) -> None:
    content = {"schema_version": 1, **asdict(stop)}
    write_durably(instance.paths.stop, (json.dumps(content, indent=2) + "\n").encode())


def read_stop(instance: Instance) -> Stop:
    """UsageError if no run of this instance has a checkpoint."""
    instance.require_journal()
    try:
        content: dict[str, Any] = json.loads(instance.paths.stop.read_bytes())
        if content.pop("schema_version") != 1:
            raise ValueError("another version")
        return decode(Stop, content)
    except FileNotFoundError:
        raise UsageError(
            "no run of this instance stopped at an escalation",
            where=instance.identity.instance_id,
            hint="start a run with `ktrdr-vm apply PROFILE`",
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"the checkpoint of its run cannot be read: {error}",
            where=str(instance.paths.stop),
            hint="destroy the instance with `ktrdr-vm destroy` and apply again",
        ) from None


def require_stop(instance: Instance, stop: Stop) -> None:
    """Called under the lock of the instance. UsageError if another command has continued the run since its checkpoint
    was read: it may have ended, and its report must not be replaced."""
    if read_stop(instance) != stop:
        raise UsageError(
            "another command has continued this run in the meantime",
            where=instance.identity.instance_id,
            hint=f"`ktrdr-vm report {instance.identity.instance_id}` shows how far it is",
        )
