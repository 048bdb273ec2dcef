"""Collecting the results of one VM into the run directory: commits, artifacts, notes, console, ledger, escalations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.ledger import read_kept
from ktrdr_vm.egress.revision import read_revision
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.evidence.run_directory import list_fetched
from ktrdr_vm.guest.artifacts import ArtifactLimits, fetch_artifacts
from ktrdr_vm.guest.commits import Returned, pull_commits
from ktrdr_vm.guest.guide import NOTES
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.host.paths import InstancePaths
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.report.decode import decode
from ktrdr_vm.report.model import Artifact, EscalationRow
from ktrdr_vm.run.artifact_rows import make_artifacts
from ktrdr_vm.run.recorder import Recorder

# Notes are short texts.
_NOTE_LIMITS = ArtifactLimits(files=20, total=2 * 1024 * 1024, single=256 * 1024, seconds=60)


class Harvest:
    """Collects from one instance. `folder` separates its files from those of the workload's VM, for which it is empty.

    `since` is UTC, RFC 3339: later rows of the ledger belong to the run.
    """

    def __init__(
        self, gathered: Gathered, paths: InstancePaths, connect: Callable[[], Guest], *, folder: str, since: str
    ) -> None:
        self.folder = folder
        self.ledger: list[dict[str, Any]] | None = None
        self.escalations: tuple[EscalationRow, ...] = ()
        self.artifacts: tuple[Artifact, ...] = ()
        self.revision = ""
        self._gathered = gathered
        self._plan = gathered.plan
        self._profile = gathered.plan.profile
        self._paths = paths
        self._connect = connect
        self._since = since

    def place_artifacts(self, recorder: Recorder) -> Path:
        """The folder for the files of this VM."""
        return recorder.directory.path / "artifacts" / self.folder

    def add_fetched(self, gate: str, recorder: Recorder) -> None:
        """Record the files that tasks of the gate have fetched."""
        self.artifacts += list_fetched(self.place_artifacts(recorder) / gate, gate, recorder.directory.path)

    def pull(self, recorder: Recorder) -> Returned:
        """Fetch the commits of the workload into the repository of the user."""
        workspace, repository = self._profile.workspace, self._gathered.repository
        if workspace is None or repository is None:
            return Returned()
        base = self._plan.facts.base_commit
        with recorder.phase("commits", of=self.folder):
            return pull_commits(repository, base, workspace.target, self._connect(), self._plan.identity)

    def fetch_artifacts(self, recorder: Recorder) -> None:
        """Fetch the artifacts of the profile."""
        if not self._profile.artifacts:
            return
        with recorder.phase("artifacts", of=self.folder):
            folder = self.place_artifacts(recorder)
            fetched = fetch_artifacts(self._connect(), self._profile.artifacts, folder)
            self.artifacts += make_artifacts(fetched, beneath="artifacts/" if self.folder else "")

    def fetch_notes(self, recorder: Recorder) -> None:
        """Fetch the notes of the workload for the reviewer. Missing ones are no error, because the bundle lists
        them."""
        workspace = self._profile.workspace
        if workspace is None:
            return
        folder, place = recorder.directory.path / "notes", f"{workspace.target}/{NOTES}"
        rows = fetch_artifacts(self._connect(), [place], folder, limits=_NOTE_LIMITS)
        self.artifacts += make_artifacts(row for row in rows if row.path or row.source != place)

    def keep_evidence(self, recorder: Recorder) -> None:
        """Console, escalations and ledger, before the instance goes; each also when another cannot be kept. Raises what
        was met first."""
        paths = self._paths
        if paths.guard.exists():
            with contextlib.suppress(KtrdrError):
                GuardClient(paths.guard).flush()
        self.revision = read_revision(paths.guard) or self.revision
        met: list[Exception] = []
        for keep in (self._keep_console, self._keep_escalations, self._keep_ledger):
            try:
                keep(recorder)
            except Exception as caught:
                met.append(caught)
        if met:
            raise met[0]

    def _keep_console(self, recorder: Recorder) -> None:
        recorder.directory.keep_console(
            self._paths.console, f"console-{self.folder}.log" if self.folder else "console.log"
        )

    def _keep_escalations(self, _recorder: Recorder) -> None:
        store = EscalationStore(self._paths.escalations, self._plan.identity.instance_id)
        self.escalations = tuple(decode(EscalationRow, one.to_json()) for one in store.list()) or self.escalations

    def _keep_ledger(self, recorder: Recorder) -> None:
        """Read once, because the teardown removes its directory."""
        if self.ledger is None:
            self.ledger = [row for row in read_kept(self._paths.ledger) if row["time"] >= self._since]
            recorder.directory.keep_ledger(self.ledger, add=bool(self.folder))
