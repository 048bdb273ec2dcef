"""Provisioning of one VM of a run: image, template, resources, boot, identity and workspace, until its first gate can
run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_vm.egress.revision import read_revision
from ktrdr_vm.errors import UsageError
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.guest.workspace import Laid, copy_in, copy_returned
from ktrdr_vm.host.capacity import require_capacity
from ktrdr_vm.host.confinement import find_fork_obstacle
from ktrdr_vm.host.foreign_rules import require_passage
from ktrdr_vm.host.journal import Journal, explained
from ktrdr_vm.host.nft import list_ruleset
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.host.waiting import announce_wait
from ktrdr_vm.images.ensure import ensure_image
from ktrdr_vm.images.store import Image, refuse_disk
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.instance.allocation import find_users
from ktrdr_vm.instance.instance import Instance, find_boot_limit
from ktrdr_vm.instance.loaded import LoadedInstance, load_instance
from ktrdr_vm.instance.resources.mount import require_source
from ktrdr_vm.instance.secrets import remove_secret
from ktrdr_vm.instance.snapshot import adopt, find_snapshot
from ktrdr_vm.instance.suspend import resume, shut_down
from ktrdr_vm.instance.waiting_guard import WaitingGuard, start_guard
from ktrdr_vm.plan.changes import find_changes, require_possible, require_same_workspace
from ktrdr_vm.plan.facts import TemplateFacts
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.model import Secret, Workspace
from ktrdr_vm.run.listener import Options
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.usage import Sampler
from ktrdr_vm.templates.project import build_best, find_best
from ktrdr_vm.templates.store import fits

if TYPE_CHECKING:
    from ktrdr_vm.report.model import StageName


@dataclass(frozen=True)
class RunContext:
    """What all VMs of a run share. `since` is the start of the run, and `mask` is applied to what a guest has said."""

    run_id: str
    since: str
    secrets: Mapping[str, bytes]
    mask: Callable[[str], str]


class Provisioner:
    """Creates the VM of an instance, or resumes it. Its attributes are set as soon as they are known, so that a
    provisioning that fails leaves what was created to the teardown.

    `loaded` is the instance, None before it was begun or loaded; `image` is its image, None before that is in place;
    `laid` is what was laid beneath the commits that a fresh VM verifies; `verifies` is true for that VM. `sampler` is
    started when the VM runs.
    """

    def __init__(
        self,
        gathered: Gathered,
        home: Home,
        instance: Instance,
        context: RunContext,
        options: Options,
        sampler: Sampler,
        *,
        name: StageName,
    ) -> None:
        self.loaded: LoadedInstance | None = None
        self.image: Image | None = None
        self.laid = Laid()
        self._gathered = gathered
        self._plan = gathered.plan
        self._home = home
        self._instance = instance
        self._context = context
        self._options = options
        self._sampler = sampler
        self._guard: WaitingGuard | None = None
        self.verifies = name == "verification"
        # A snapshot is where the run begins, and not its verification.
        self._source = options.source if name == "base" else ""

    # -- a VM that is created or continued -----------------------------------------------------------------------------

    def provision(self, recorder: Recorder) -> None:
        """Create what is missing of the instance, boot it, and copy the workspace in. What makes this impossible is
        an error before an image is built or a VM is booted for it."""
        plan, journal = self._plan, self._instance.find_journal()
        before = plan_from_json(journal.plan) if journal is not None else None
        if before is not None:
            require_same_workspace(before, plan)
        template = find_snapshot(self._home, self._source, plan) if self._source else None
        if journal is None:
            require_passage(list_ruleset(), find_users())
            for mount in plan.profile.mounts:
                require_source(mount, Path(plan.facts.workspace), self._gathered.policy.mount_roots)
        with self._phase(recorder, "image"):
            image = self._ensure_image(recorder)
        if reason := refuse_disk(plan.profile.resources.disk, image.virtual_size):
            raise UsageError(
                reason, where="resources.disk", hint="increase it; the disk uses only the space that is written"
            )
        require_capacity(self._home.root, plan.profile.resources.memory)
        if journal is None:
            # Before the other parts, beside which it loads its modules.
            with explained(str(self._instance.paths.directory)):
                self._guard = start_guard(self._instance.paths.guard)
        if journal is None and not self._source:
            template = self._find_template(image, recorder)
        with self._phase(recorder, "create"):
            loaded = self._create(journal, before, template, recorder)
        self._sampler.start()
        limit = find_boot_limit(plan.facts)
        with self._phase(recorder, "boot"), announce_wait(recorder.listener.note, "waiting for SSH", limit):
            guest = loaded.connect(limit=limit)
        with self._phase(recorder, "personalize"):
            from ktrdr_vm.guest.personalize import personalize

            if self._source:
                adopt(guest, loaded.allocation.login_public_key)
            personalize(guest, plan, loaded.environment())
            loaded.complete(
                read_secret=self._read_secret,
                mount_roots=self._gathered.policy.mount_roots,
                notify=recorder.on_resource,
            )
        # A branch has the workspace of what it began from.
        if plan.profile.workspace is not None and self._gathered.repository is not None and not self._source:
            self._provide_workspace(self._gathered.repository, plan.profile.workspace, guest, recorder)

    def _ensure_image(self, recorder: Recorder) -> Image:
        self.image = ensure_image(
            self._plan.profile.image,
            self._gathered.recipe,
            self._home.images,
            progress=recorder.listener.note,
            sources=self._gathered.policy.image_sources,
        )
        return self.image

    def _find_template(self, image: Image, recorder: Recorder) -> TemplateFacts | None:
        """The template to fork from, built if it is missing; None if the instance boots from power-on."""
        note, libvirt = recorder.listener.note, self._instance.libvirt
        if self._options.cold or not fits(self._plan):
            return None
        if obstacle := find_fork_obstacle(libvirt):
            note(f"boots without a template: {obstacle}")
            return None
        template = find_best(self._home, self._gathered, self._plan, image, note)
        if template is None:
            with self._phase(recorder, "template"):
                template = build_best(self._home, self._gathered, self._plan, image, libvirt, note)
        return template

    def _create(
        self, journal: Journal | None, before: Plan | None, template: TemplateFacts | None, recorder: Recorder
    ) -> LoadedInstance:
        """Create the resources. A sandbox of an earlier run is destroyed before; an interactive instance follows the
        plan."""
        plan = self._plan
        if journal is not None and plan.profile.mode == "sandbox":
            recorder.listener.note("an earlier run left this instance; it is destroyed first")
            self._instance.destroy(notify=recorder.on_resource)
            journal = before = None
        if journal is not None and before is not None:
            self._follow(journal, before, recorder)
        loaded = self.loaded = self._instance.begin(
            plan,
            journal=journal,
            template=template,
            source=self._source,
            run_id=self._context.run_id,
            most_instances=self._gathered.policy.most_instances,
        )
        loaded.create(
            read_secret=self._read_secret,
            mount_roots=self._gathered.policy.mount_roots,
            notify=recorder.on_resource,
            guard=self._guard,
        )
        loaded.guard.follow_plan(plan.digest)
        if journal is not None and any(broker.after for _, broker in plan.profile.brokered):
            # What an earlier run has passed says nothing of the files that this one judges.
            loaded.guard.begin_gates()
        self._follow_revision(recorder)
        if plan.collector is not None:
            # An instance that stays has had other runs.
            loaded.guard.begin_run(self._context.run_id)
        return loaded

    def _follow(self, journal: Journal, before: Plan, recorder: Recorder) -> None:
        """Let an existing instance follow its profile: report what changes, and shut it down where a restart is needed
        and allowed."""
        changes = find_changes(before, self._plan)
        # A paused one keeps what it was started with as well.
        running = self._instance.target.is_running()
        require_possible(changes, self._plan.identity.instance_id, running=running, restart=self._options.restart)
        for change in changes:
            recorder.listener.note(f"changes ({change.how}) {change}")
            recorder.directory.event(
                "change", part=change.part, before=change.before, after=change.after, how=change.how
            )
        if not running:
            return
        earlier = load_instance(self._home, self._instance.target, journal, before)
        with contextlib.closing(earlier):
            for secret in before.profile.secrets:
                if secret not in self._plan.profile.secrets:
                    remove_secret(earlier, secret.name)
            if self._options.restart:
                with self._phase(recorder, "shut down"):
                    shut_down(earlier)

    def _provide_workspace(
        self, repository: Repository, workspace: Workspace, guest: Guest, recorder: Recorder
    ) -> None:
        """Copy the workspace in. An interactive instance that has one keeps it."""
        note, target = recorder.listener.note, workspace.target
        if (
            self._plan.profile.mode == "interactive"
            and guest.run(["test", "-e", f"{target}/.git"], timeout=60).exit_code == 0
        ):
            note(f"{target} exists and is not changed, because the instance is interactive")
            return
        user, instance_id = self._plan.facts.image.user, self._plan.identity.instance_id
        with self._phase(recorder, "workspace"):
            if not self.verifies:
                keep = self._instance.paths.loose if self._plan.profile.is_verified_apart else None
                copy_in(repository, workspace, guest, user, instance_id, note, keep=keep)
                return
            self.laid = copy_returned(repository, workspace, guest, user, instance_id, note, loose=self._gathered.loose)
            if self.laid != Laid():
                recorder.directory.event("laid_beneath", **asdict(self.laid))

    # -- a VM that was suspended ---------------------------------------------------------------------------------------

    def load(self) -> LoadedInstance:
        """The suspended instance, which is not changed."""
        self.loaded = self._instance.load()
        return self.loaded

    def resume(self, loaded: LoadedInstance, recorder: Recorder) -> None:
        """Resume the instance that `load` returned."""
        self._ensure_image(recorder)
        resume(
            loaded,
            read_secret=self._read_secret,
            mount_roots=self._gathered.policy.mount_roots,
            notify=recorder.on_resource,
        )
        self._follow_revision(recorder)
        self._sampler.start()

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _follow_revision(self, recorder: Recorder) -> None:
        recorder.directory.follow_revision(partial(read_revision, self._instance.paths.guard))

    def _phase(self, recorder: Recorder, name: str) -> contextlib.AbstractContextManager[None]:
        return recorder.phase(name, of="verification" if self.verifies else "")

    def _read_secret(self, secret: Secret) -> bytes:
        return self._context.secrets[secret.name]
