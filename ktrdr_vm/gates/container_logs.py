"""Evidence for a failed task about containers: their state, exit code, health checks and last lines."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.errors import GuestError, keep_beginning
from ktrdr_vm.gates.compose_hints import find_hints
from ktrdr_vm.gates.modules.base import text_of
from ktrdr_vm.guest.protocol import Guest

_PROJECT = "com.docker.compose.project"
_LOG_LINES = 50
_OTHER_LINES = 20
_MAX_CONTAINERS = 20
_MAX_OTHERS = 5
# Those that are listed first, since only the first _MAX_CONTAINERS are inspected.
_ILL_FIRST = (
    "docker ps -aq --filter health=unhealthy;"
    " docker ps -aq --filter status=restarting --filter status=dead --filter status=paused --filter status=exited; "
)
_MAX_TEXT = 16 * 1024
_LIMIT_S = 60.0

Evidence = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Failure:
    """What a failed task said, and the folder where it ran; empty if unknown."""

    said: str
    folder: str


def gather_containers(
    guest: Guest, failure: Failure, *, environment: Mapping[str, str], become: bool
) -> tuple[Evidence, tuple[str, ...]]:
    """A titled text for every failed or unhealthy container and some others, and the states of all; then causes of the
    failure that lie in the guest.

    Empty if Docker does not answer.

    Those of the project COMPOSE_PROJECT_NAME come first, then all others of the VM: a stack may name its own project,
    and a test may start containers by hand. Of many containers those that are not well are read. GuestError is ignored,
    because this runs after a failure, and must not hide it.
    """

    def ask(line: str) -> str:
        return text_of(
            guest.run(line, timeout=_LIMIT_S, environment=environment, become=become, max_output=64 * 1024).stdout
        )

    project = environment.get("COMPOSE_PROJECT_NAME", "")
    own = f"docker ps -aq --filter {shlex.quote(f'label={_PROJECT}={project}')}; " if project else ""
    # Some of them twice; the second one goes.
    listed = f"{{ {_ILL_FIRST}{own}docker ps -aq; }} | awk '!seen[$0]++'"
    try:
        found = guest.run(
            f'command -v docker >/dev/null || exit 0; ids=$({listed}); [ -n "$ids" ] || exit 0; echo "$ids" | wc -l;'
            f' exec docker inspect $(echo "$ids" | head -n {_MAX_CONTAINERS})',
            timeout=_LIMIT_S,
            environment=environment,
            become=become,
            max_output=4 * 1024 * 1024,
        )
        total, _, inspected = text_of(found.stdout).partition("\n")
        containers = _parse(inspected, project)
        ill = [container for container in containers if _is_ill(container)]
        # Also of some that seem well: the service that gave a wrong answer is often one of them.
        well = [container for container in containers if not _is_ill(container)][:_MAX_OTHERS]
        wanted = [*((one, _LOG_LINES) for one in ill), *((one, _OTHER_LINES) for one in well)]
        logs = _read_logs(guest, wanted, environment=environment, become=become)
        hints = find_hints(
            failure.said, failure.folder, ask, [(one, log) for one, (_, log) in zip(ill, logs, strict=False)]
        )
    except GuestError:
        return (), ()
    if not containers:
        return (), hints
    states = "\n".join(f"{_name(container)}: {_describe(container)}" for container in containers)
    more = int(total) - len(containers) if total.isdecimal() and len(total) < 6 else 0
    if more > 0:
        states += f"\nand {more} more, which are not shown"
    return (("containers", states), *logs), hints


def _parse(text: str, project: str) -> list[dict[str, Any]]:
    try:
        data = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    containers = [item for item in data if isinstance(item, dict) and item.get("Id")] if isinstance(data, list) else []
    return sorted(containers, key=lambda container: (_read_project(container) != project, _name(container)))


def _read_project(container: Mapping[str, Any]) -> str:
    config = container.get("Config")
    labels = config.get("Labels") if isinstance(config, dict) else None
    return str(labels.get(_PROJECT, "")) if isinstance(labels, dict) else ""


def _name(container: Mapping[str, Any]) -> str:
    return str(container.get("Name", "")).lstrip("/") or "?"


def _state(container: Mapping[str, Any]) -> dict[str, Any]:
    state = container.get("State")
    return state if isinstance(state, dict) else {}


def _health(container: Mapping[str, Any]) -> dict[str, Any]:
    health = _state(container).get("Health")
    return health if isinstance(health, dict) else {}


def _is_ill(container: Mapping[str, Any]) -> bool:
    state = _state(container)
    status = state.get("Status")
    return (
        status in ("restarting", "dead", "paused")
        or (status == "exited" and state.get("ExitCode") != 0)
        or bool(state.get("OOMKilled") or state.get("Error"))
        or _health(container).get("Status") in ("unhealthy", "starting")
    )


def _describe(container: Mapping[str, Any]) -> str:
    state, health = _state(container), _health(container)
    said = [str(state.get("Status", "unknown"))]
    if state.get("Status") in ("exited", "dead", "restarting"):
        said.append(f"exit code {state.get('ExitCode')}")
    if health.get("Status"):
        said.append(f"health {health['Status']}")
    if state.get("OOMKilled"):
        said.append("killed because of lack of memory")
    if state.get("Error"):
        said.append(str(state["Error"]))
    return ", ".join(said)


def _health_checks(container: Mapping[str, Any]) -> str:
    log = _health(container).get("Log")
    checks = [check for check in log if isinstance(check, dict)] if isinstance(log, list) else []
    return "".join(
        f"health check at {check.get('Start')}, exit code"
        f" {check.get('ExitCode')}:\n{keep_beginning(str(check.get('Output', '')).strip(), 2000)}\n"
        for check in checks[-2:]
    )


def _read_logs(
    guest: Guest, wanted: list[tuple[dict[str, Any], int]], *, environment: Mapping[str, str], become: bool
) -> list[tuple[str, str]]:
    """The last lines of each container, as many as are given, with one command, because starting the client is slow
    under emulation."""
    if not wanted:
        return []
    token = f"--{secrets.token_hex(16)}--"
    script = "".join(
        f"echo {token}; timeout 15 docker logs --tail {lines} {shlex.quote(str(container['Id']))} 2>&1 | tail -c"
        f" {_MAX_TEXT}; "
        for container, lines in wanted
    )
    found = guest.run(script, timeout=_LIMIT_S, environment=environment, become=become, max_output=1024 * 1024)
    parts = text_of(found.stdout).split(f"{token}\n")[1:]
    texts = []
    for (container, _), log in zip(wanted, [*parts, *[""] * len(wanted)], strict=False):
        body = f"state: {_describe(container)}\n{_health_checks(container)}last lines:\n{log.strip() or '(nothing)'}"
        texts.append((f"container {_name(container)}", body[: 2 * _MAX_TEXT]))
    return texts
