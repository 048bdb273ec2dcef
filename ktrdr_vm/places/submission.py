"""What one `submit` sends: a request for the working tree, or one for each reference, with one history for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.git import View, open_view
from ktrdr_vm.host.repository import Repository, find_repository
from ktrdr_vm.inputs.committed_files import write_files
from ktrdr_vm.places.history import History, Offer, pack_history
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.pack import Asked, check_profile, choose_refs, find_base, pack_request
from ktrdr_vm.places.request import Request, make_request_id


@dataclass(frozen=True)
class Packed:
    """A request, its folder, and the top of its repository."""

    request: Request
    folder: Path
    workspace: Path | None


def pack_requests(
    asked: Asked,
    place: Place,
    refs: Sequence[str],
    into: Path,
    note: Callable[[str], None],
    list_offers: Callable[[], Iterable[Offer]],
    nodes: Sequence[str] = ("",),
) -> list[Packed]:
    """Pack into folders of `into`: one request for each of `refs`, or without them one for each of `nodes`.

    `list_offers` asks the place for the bundles that it has, once, after all checks of the inputs.
    """
    if asked.instance_id and len(refs) > 1:
        raise UsageError(
            "one --instance-id cannot be that of several references", where="--ref", hint="leave out --instance-id"
        )
    if place.is_cluster and asked.sent_secrets:
        raise UsageError(
            "a job begins when this command has ended, and nothing but a file could keep the value until then",
            where="--send-secret",
            hint="run it at a place of kind ssh",
        )
    bundle = into / "history.bundle"
    if refs:
        repository = find_repository(asked.workspace)
        with open_view(repository.place) as view:
            chosen = choose_refs(view, repository, refs)
            history = pack_history(view, [one for one, _ in chosen], bundle, list_offers)
            return list(_pack_refs(asked, place, chosen, into, note, (view, history)))
    base = find_base(asked, check_profile(asked))
    made = []
    with contextlib.ExitStack() as stack:
        pair = None
        if base is not None:
            view = stack.enter_context(open_view(base.place))
            pair = (base, pack_history(view, [base], bundle, list_offers))
        for node in nodes:
            request_id = make_request_id()
            folder = into / request_id
            request = pack_request(replace(asked, node=node), place, folder, request_id, note, base=pair)
            made.append(Packed(request, folder, base.root if base else None))
    return made


def _pack_refs(
    asked: Asked,
    place: Place,
    chosen: Sequence[tuple[Repository, str]],
    into: Path,
    note: Callable[[str], None],
    opened: tuple[View, History],
) -> Iterable[Packed]:
    """A request for each reference. The profile is that of the reference, where the repository has it."""
    view, history = opened
    profile = asked.profile.resolve()
    # References at one commit share its files.
    for commit in dict.fromkeys(one.commit for one, _ in chosen):
        with write_files(view, commit) as tree:
            for repository, instance_id in chosen:
                if repository.commit != commit:
                    continue
                own = profile.is_relative_to(repository.root)
                at_ref = replace(
                    asked, profile=tree / profile.relative_to(repository.root) if own else profile, workspace=tree
                )
                request_id = make_request_id()
                folder = into / request_id
                name = asked.instance_id or instance_id
                base = (repository, history)
                request = pack_request(
                    at_ref, place, folder, request_id, note, base=base, instance_id=name, committed=True
                )
                yield Packed(request, folder, repository.root)
