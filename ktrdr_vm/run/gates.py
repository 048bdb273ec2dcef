"""Gates in an existing instance, outside of a run: for `gate`, programs and the MCP server."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.run_directory import make_run_id
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.facts import refuse_setting
from ktrdr_vm.gates.load import load_playbook, place_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.host.beneath import Place
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.host.runs import create_run, hand_over
from ktrdr_vm.inputs.references import find_playbook
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.report.model import GateResult
from ktrdr_vm.run.mask import find_mask


def run_gates(
    loaded: LoadedInstance,
    names: Sequence[str],
    workspace: Path,
    *,
    trusted: bool,
    variables: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = warnings.warn,
    on_event: Callable[[Mapping[str, Any]], None] = lambda _event: None,
    expect: str = "",
) -> list[GateResult]:
    """Run gates by name or path under the lock of the instance. BusyError if a run holds it.

    Files that their tasks fetch are stored in a separate run directory, which is handed over to the user at the end.
    `trusted` names were typed by a user, and may be outside of the workspace. UsageError before a gate if `expect` is
    not the revision of the instance, or for a variable that would change how Ansible runs a task.
    """
    for name in variables or {}:
        if reason := refuse_setting(name):
            raise UsageError(reason, where=name, hint="a gate connects over SSH as the user of the image")
    playbooks = [
        (path := find_playbook(name, workspace, trusted=trusted), load_playbook(path, beneath=workspace))
        for name in names
    ]
    profile = loaded.plan.profile
    results = []
    with loaded.locked():
        loaded.require_revision(expect)
        guest = loaded.connect()
        mask = find_mask(loaded, warn)
        loaded.home.create()
        directory = create_run(loaded.home, loaded.instance_id, f"gates-{make_run_id()}")
        try:
            for path, playbook in playbooks:
                context = GateContext(
                    extra_vars={**dict(profile.vars), **(variables or {})},
                    roots=(place_playbook(path, workspace).parent, Place(workspace)),
                    environment=loaded.environment(),
                    artifacts=directory / "artifacts" / playbook.name,
                    mask=mask,
                    gate_timeout=profile.gate_timeout,
                    on_event=on_event,
                )
                loaded.require_revision(expect)
                results.append(run_playbook(playbook, guest, context))
        finally:
            hand_over(directory, find_owner())
    return results
