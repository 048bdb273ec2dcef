"""One attempt of a request, on the host where it runs.

attempts/<n>/
  lease.jsonl       node and process, then a line at an interval, while the attempt runs
  events.jsonl      the events of the run, while they happen
  egress.jsonl      the ledger, while it is written
  commits.bundle    the commits of the workload, as branches
  run/              the whole run directory, at the end
  outcome.json      how it ended, last
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ktrdr_vm.errors import BusyError, HostError, KtrdrError, UsageError
from ktrdr_vm.guest.commits import unescape_branch
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.clone import create_bundle
from ktrdr_vm.host.journal import locked
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.owner import forbid_cores
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.host.tree_removal import remove_tree
from ktrdr_vm.inputs.resolve import Gathered, gather_profile, read_profile
from ktrdr_vm.inputs.trusted import require_accepted
from ktrdr_vm.instance.garbage import collect_workspaces
from ktrdr_vm.instance.instance import require_root
from ktrdr_vm.places.filenames import ATTEMPTS, CANCEL, COMMITS, LEASE, RUN
from ktrdr_vm.places.lease import Lease
from ktrdr_vm.places.materialize import materialize
from ktrdr_vm.places.mirror import Mirror
from ktrdr_vm.places.pack import find_image_digest
from ktrdr_vm.places.request import Request, digest_judged
from ktrdr_vm.places.request_state import RETRIED, is_alive, read_json, read_outcome, write_outcome
from ktrdr_vm.places.retention import collect_requests
from ktrdr_vm.places.secret_values import Values
from ktrdr_vm.places.spool import Spool
from ktrdr_vm.report.model import RunReport
from ktrdr_vm.run.listener import Listener, Options
from ktrdr_vm.run.run import Run
from ktrdr_vm.templates.project import warm_up


class Execute(Protocol):
    """Runs what was gathered, with the values of the secrets that came with the request."""

    def __call__(
        self, gathered: Gathered, home: Home, request: Request, listener: Listener, values: Values
    ) -> RunReport | None: ...


_POLL = 1.0


def execute_run(
    gathered: Gathered, home: Home, request: Request, listener: Listener, values: Values
) -> RunReport | None:
    """The run itself, as `apply` does it; None if the host was only prepared for it."""
    require_root()
    if request.warm:
        warm_up(home, gathered, Libvirt(), listener.note)
        return None
    return Run(gathered, home, Libvirt(), Options(cold=request.cold, secrets=values), listener).execute()


def run_request(
    spool: Spool,
    request_id: str,
    home: Home,
    *,
    execute: Execute = execute_run,
    values: Values | None = None,
    note: Callable[[str], object] = str,
) -> int:
    """Run attempts of a request until one ends with a result that is not tried again. Its exit code.

    `values` are those of the secrets that came with the request; each attempt of this process has them.

    BusyError if an attempt runs already; UsageError if the request has ended.
    """
    forbid_cores()
    request = spool.read(request_id)
    while True:
        number = _claim(spool, request)
        code = _run_attempt(spool, request, number, home, functools.partial(execute, values=values or {}), note)
        if code not in RETRIED or number >= request.attempts or os.path.lexists(spool.request(request_id) / CANCEL):
            # As each run removes the oldest of its instance_id: the spool of a cluster has no other `gc`.
            with contextlib.suppress(OSError):
                collect_requests(spool, dry_run=False)
            return code
        note(f"attempt {number} ended with exit code {code}; it is tried again")


def _claim(spool: Spool, request: Request) -> int:
    """Create the folder of the next attempt. An attempt of another host may run until its lease has ended."""
    folder = spool.request(request.request_id)
    make_private(folder, folder / ATTEMPTS)
    deadline = time.monotonic() + request.grace
    while True:
        number = spool.count_attempts(request.request_id)
        attempt = spool.attempt(request.request_id, number)
        outcome = read_outcome(attempt) if number else None
        runs = number > 0 and outcome is None and is_alive(attempt, read_json(attempt / LEASE), request.grace)
        if os.path.lexists(folder / CANCEL) or read_outcome(folder) is not None:
            if read_outcome(folder) is None:
                if runs:
                    # Of a node that only the scheduler has lost: the mark ends it, with its evidence.
                    time.sleep(_POLL)
                    continue
                if outcome is None or outcome["exit_code"] in RETRIED:
                    spool.end_early(request.request_id)
            raise UsageError("this request was cancelled", where=str(folder), hint="submit it again")
        if number:
            if runs:
                if time.monotonic() > deadline or read_json(attempt / LEASE).get("node") == os.uname().nodename:
                    raise BusyError(
                        f"attempt {number} of this request runs", where=str(attempt), hint="`ktrdr-vm watch` follows it"
                    )
                time.sleep(_POLL)
                continue
            if outcome is not None and outcome["exit_code"] not in RETRIED:
                raise UsageError(
                    f"this request has ended: {outcome['outcome']}", where=str(attempt), hint="submit it again"
                )
        if number >= request.attempts:
            raise UsageError(
                f"all {request.attempts} attempts of this request have ended", where=str(folder), hint="submit it again"
            )
        try:
            spool.attempt(request.request_id, number + 1).mkdir(mode=0o700)
            return number + 1
        except FileExistsError:
            continue


def _run_attempt(
    spool: Spool,
    request: Request,
    number: int,
    home: Home,
    execute: Callable[[Gathered, Home, Request, Listener], RunReport | None],
    note: Callable[[str], object],
) -> int:
    folder, attempt = spool.request(request.request_id), spool.attempt(request.request_id, number)
    ended: dict[str, Any] = {"outcome": "error", "exit_code": 4, "run_id": "", "message": "", "where": "", "hint": ""}
    stopped: list[str] = []

    def stop(reason: str) -> None:
        stopped.append(reason)
        # As a scheduler would: the run collects its evidence, destroys its VM and proves it.
        os.kill(os.getpid(), signal.SIGTERM)

    mirror = Mirror(attempt, home.instance(request.instance_id).ledger)
    try:
        with Lease(folder, attempt, request.grace, stop), _private_folder(home, request.request_id) as private:
            gathered = _gather(request, folder, private, home)
            report = execute(gathered, home, request, mirror)
            mirror.finish()
            if report is None:
                ended |= {"outcome": "passed", "exit_code": 0, "message": "image and template are there"}
            else:
                ended |= {
                    "outcome": report.outcome,
                    "exit_code": report.exit_code,
                    "run_id": report.run_id,
                    "message": report.message,
                    "hint": report.hint,
                }
                _return_commits(report, request, gathered, attempt)
    except KeyboardInterrupt:
        ended |= {"outcome": "interrupted", "exit_code": 130}
    except KtrdrError as error:
        ended |= {
            "outcome": "error",
            "exit_code": error.exit_code,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
        }
    except OSError as error:
        ended |= {"exit_code": 3, "message": error.strerror or str(error), "where": str(error.filename or attempt)}
        ended["hint"] = "check that this path exists, its permissions and the free space"
    except Exception as error:
        ended |= {
            "message": f"{type(error).__name__}: {error}"[:2000],
            "hint": "this is a bug in ktrdr-vm: please report it",
        }
        raise
    finally:
        mirror.finish()
        if mirror.run is not None:
            _return_run(mirror.run, attempt, request.grace, note)
        if stopped:
            ended["message"] = f"the attempt was stopped: {stopped[0]}"
            ended["outcome"] = (
                "cancelled" if ended["exit_code"] == 130 and stopped[0] == "it was cancelled" else ended["outcome"]
            )
        _retry(lambda: write_outcome(attempt, {**ended, "ended_at": now()}), request.grace, attempt)
    note(f"{request.instance_id}: {ended['outcome']}{': ' + ended['message'] if ended['message'] else ''}")
    return int(ended["exit_code"])


@contextlib.contextmanager
def _private_folder(home: Home, request_id: str) -> Iterator[Path]:
    """A folder for the workspace, removed at the end. What attempts that were killed have left is removed before."""
    home.create()
    make_private(home.workspaces)
    collect_workspaces(home, dry_run=False)
    folder = home.workspaces / request_id
    with locked(home.lock(f"request-{request_id}"), f"the request {request_id}"):
        make_private(folder)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                remove_tree(folder)


def _gather(request: Request, folder: Path, private: Path, home: Home) -> Gathered:
    """The inputs of the run. UsageError if they are not those that the person submitted."""
    path, workspace = materialize(request, folder, private)
    loaded = read_profile(path, workspace)
    data = dict(loaded.data)
    gathered = gather_profile(
        loaded, home=home, workspace=workspace, instance_id=request.instance_id, gates=request.gates
    )
    # The owner's policy may have added a time to live, which is the host's.
    loaded.data, changed = data, loaded.data
    digest = digest_judged(
        loaded,
        request.instance_id,
        gathered.plan.facts.playbooks,
        find_image_digest(loaded.profile),
        request.branch,
        request.commit,
    )
    loaded.data = changed
    if digest != request.digest:
        raise UsageError(
            "the profile, a playbook or the image recipe is not the one that was submitted",
            where=request.request_id,
            hint="install the same version of ktrdr-vm at the place: `ktrdr-vm places check`",
        )
    if not request.accept_changes:
        require_accepted(gathered.beyond, request.profile)
    return gathered


def _return_commits(report: RunReport, request: Request, gathered: Gathered, attempt: Path) -> None:
    """The commits that the run fetched from its guest, as a bundle of branches with the names that they have in the
    guest."""
    if gathered.repository is None or not report.commits:
        return
    prefix = gathered.plan.identity.ref_prefix
    heads = {unescape_branch(one.ref.removeprefix(prefix)): one.commit for one in report.commits}
    create_bundle(gathered.repository.root, attempt / COMMITS, heads, request.commit)


def _return_run(run: Path, attempt: Path, grace: float, note: Callable[[str], object]) -> None:
    """Copy the run directory. If the spool cannot be written, the run directory stays where it is."""
    target = attempt / RUN.rstrip("/")

    def copy() -> None:
        shutil.rmtree(target, ignore_errors=True)
        # Not with its parents: a folder of the attempt that is gone is not made again elsewhere.
        target.mkdir(mode=0o700)
        shutil.copytree(run, target, symlinks=True, dirs_exist_ok=True, ignore=_list_links)

    try:
        _retry(copy, grace, attempt)
    except HostError as error:
        note(f"{error.message}; the evidence is in {run}")
        raise


def _list_links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_symlink()]


def _retry(step: Callable[[], None], grace: float, where: Path) -> None:
    """Repeat a step that writes to the spool, until `grace` seconds have passed."""
    deadline = time.monotonic() + grace
    while True:
        try:
            return step()
        except (OSError, HostError) as error:
            if time.monotonic() > deadline:
                raise HostError(
                    f"the folder of the attempt cannot be written: {error}",
                    where=str(where),
                    hint="check the file system of the spool",
                ) from None
            time.sleep(min(_POLL, grace / 4))
