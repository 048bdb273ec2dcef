"""The preparation of a project: its playbook runs in a sandbox, whose disk becomes that of the template."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import GuestError, KtrdrError, ProvisionError, keep_beginning, keep_end
from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import place_playbook
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.guest.personalize import make_environment, personalize
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.snapshot import copy_disk
from ktrdr_vm.profile.model import Secret, Workspace

DOCKER_LIMIT = 300.0


def prepare_disk(
    instance: Instance,
    create: Callable[[], LoadedInstance],
    repository: Repository,
    playbook: Playbook,
    tidy: str,
    note: Callable[[str], None],
    target: Path,
) -> None:
    """Run the playbook in a sandbox with the egress of the profile and without secrets, then the script `tidy`, and
    keep its disk."""
    with instance.locked():
        # Remove the resources of a killed earlier build.
        instance.destroy()
        try:
            with contextlib.closing(create()) as loaded:
                _work(loaded, repository, playbook, tidy, note)
                copy_disk(loaded, target)
            with contextlib.suppress(KtrdrError, OSError):
                GuardClient(instance.paths.guard).flush()
                # What it reached, for whoever asks what is in the template.
                kept = target.with_name("egress.jsonl")
                kept.touch(mode=0o600)
                shutil.copyfile(instance.paths.ledger, kept)
        finally:
            instance.destroy()


def _work(
    loaded: LoadedInstance, repository: Repository, playbook: Playbook, tidy: str, note: Callable[[str], None]
) -> None:
    plan = loaded.plan
    workspace = plan.profile.workspace or Workspace()
    environment = make_environment(plan.identity, plan.profile.mode, {})
    guest = loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
    personalize(guest, plan, environment)
    guest.run("! command -v dockerd >/dev/null || systemctl start docker.service", become=True, timeout=DOCKER_LIMIT)
    copy_in(repository, workspace, guest, plan.facts.image.user, plan.identity.instance_id, note)
    context = GateContext(
        extra_vars=dict(plan.profile.vars),
        roots=(place_playbook(playbook.path, repository.root).parent, repository.place),
        environment=environment,
        gate_timeout=plan.profile.gate_timeout,
    )
    result = run_playbook(playbook, guest, context)
    if result.outcome != "passed":
        why = keep_beginning(result.message, 500) or result.outcome
        raise ProvisionError(
            f"the project could not be prepared: {why}",
            where=playbook.source,
            hint="correct the playbook, or remove `prepare` from the profile; `apply --cold` uses no template",
        )
    tidied = guest.run(tidy, environment={"TARGET": workspace.target}, become=True, timeout=DOCKER_LIMIT)
    if tidied.exit_code != 0:
        raise GuestError(
            f"the guest could not be cleaned up: {keep_end(tidied.stderr.decode('utf-8', 'replace').strip(), 300)}",
            where=plan.identity.instance_id,
            hint="check which processes the playbook leaves running",
        )


def refuse_secret(secret: Secret) -> bytes:
    raise ProvisionError(
        f"the secret {secret.name} cannot be stored in a template", where="prepare", hint="remove it from the playbook"
    )
