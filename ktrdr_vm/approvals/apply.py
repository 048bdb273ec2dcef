"""Answers to escalations: checked against the owner's policy, applied to the running instance, recorded, revoked.

An approval may narrow a request, and never exceed it. It cannot allow what the owner's policy does not allow to a
profile.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ktrdr_vm.approvals.loans import LOANS, add_loan, check_loan, end_soon, remove_loan
from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.escalation.decision import check_request
from ktrdr_vm.escalation.packet import KINDS, parse_request
from ktrdr_vm.escalation.store import Answer, Escalation
from ktrdr_vm.host.clock import boottime, now, read_boot_id, seconds_since
from ktrdr_vm.host.journal import read_journal
from ktrdr_vm.instance.escalations import open_store
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.secret import Secret as SecretResource
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.policy.ceiling import check_presets, check_uses
from ktrdr_vm.policy.owner_policy import OwnerPolicy, refuse_secret
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import Secret


def approve(
    loaded: LoadedInstance,
    escalation_id: str,
    policy: OwnerPolicy,
    *,
    reason: str,
    request: dict[str, Any] | None = None,
    seconds: int | None = None,
    source: Secret | None = None,
) -> Escalation:
    """Apply and record an approval. `request` and `seconds` narrow the request; `source` is the source of a secret.

    UsageError if the owner's policy, the packet or the state does not allow it; nothing is applied then.
    """
    store = loaded.escalations
    found = store.find(escalation_id)
    # A waiting one was approved by a command that was killed before it was applied, or while the instance was
    # suspended.
    if found.current != "pending" and not (
        found.current == "approved" and found.answer is not None and found.answer.waiting
    ):
        raise UsageError(
            f"{escalation_id} is {found.current}",
            where=loaded.instance_id,
            hint="only a pending escalation can be approved",
        )
    _require_reason(reason)
    approved = _narrow(found, request)
    lasting = seconds if seconds is not None else found.packet.seconds
    _check(found, approved, lasting, policy, loaded)
    answer = Answer(by=_who(), reason=reason, at=now(), request=approved, seconds=lasting)
    if found.packet.kind == "secret":
        answer = replace(answer, source=_check_source(loaded, policy, source))
    if loaded.journal.state != "awake":
        return store.answer(escalation_id, "approved", replace(answer, waiting=found.packet.kind != "decision"))
    with store.approving(escalation_id, answer) as settle:
        # `branch` enters its state in the journal first, and then searches for approvals that are being applied.
        journal = read_journal(loaded.paths.journal)
        if journal is not None and journal.state != "awake":
            raise UsageError(
                f"the instance is {journal.state}",
                where=loaded.instance_id,
                hint="approve it again, then it waits for `resume`",
            )
        settle(_apply(loaded, found, answer, policy).ends)
    return store.find(escalation_id)


def check_sources(loaded: LoadedInstance) -> None:
    """Checked before a resume: UsageError or HostError when a secret that an approval delivers cannot be read now."""
    for one in loaded.escalations.list():
        if one.packet.kind == "secret" and one.current == "approved" and one.answer is not None:
            read_source(_make_entry(one.answer))


def reapply(loaded: LoadedInstance, policy: OwnerPolicy, *, kinds: Collection[str] = KINDS) -> list[Escalation]:
    """Called after a resume. Apply what was approved during the suspend, and apply the other approvals again until
    their expiry. Returns what was applied.

    `kinds` are the kinds that the suspend removed.

    A failure does not prevent the others; a ProvisionError at the end names all that failed.
    """
    store = loaded.escalations
    applied, failed = [], []
    for one in store.list():
        if one.current != "approved" or one.answer is None or one.packet.kind == "decision":
            continue
        answer = one.answer
        try:
            if answer.waiting:
                applied.append(
                    store.answer(one.id, "approved", _apply(loaded, one, replace(answer, waiting=False), policy))
                )
            elif answer.ends is not None and one.packet.kind in kinds:
                left = max(1, int(answer.ends[1] - boottime()))
                _apply(loaded, one, replace(answer, seconds=left), policy)
                applied.append(one)
        except KtrdrError as error:
            failed.append((one.id, error))
    ended = [one for one in store.list() if one.packet.kind == "resources" and one.current in ("expired", "revoked")]
    if ended and not any(one.packet.kind == "resources" for one in applied):
        end_soon(loaded, ended[-1].id)
    if failed:
        name = loaded.instance_id
        raise ProvisionError(
            "not reapplied: " + "; ".join(f"{escalation_id}: {error.message}" for escalation_id, error in failed),
            where=name,
            hint=(
                f"correct the cause and `ktrdr-vm resume {name}`, or `ktrdr-vm escalations revoke {name}"
                f" {failed[0][0]}`"
            ),
        )
    return applied


def _apply(loaded: LoadedInstance, one: Escalation, answer: Answer, policy: OwnerPolicy) -> Answer:
    """Apply an approval to the running instance. Returns the answer with its expiry, for a grant that of the guard."""
    lasting: float = answer.seconds
    if one.packet.kind == "network":
        rule = EgressRule(host=answer.request["host"], ports=tuple(answer.request["ports"]), reason=answer.reason)
        lasting = loaded.guard.grant(one.id, rule, answer.seconds).seconds
    elif one.packet.kind == "secret":
        deliver_secret(loaded, _make_entry(answer))
    elif one.packet.kind in LOANS:
        add_loan(loaded, one.id, one.packet.kind, answer.request, policy, seconds=answer.seconds, reason=answer.reason)
    else:
        return answer
    return replace(answer, ends=(read_boot_id(), boottime() + lasting))


def deny(instance: Instance, escalation_id: str, *, reason: str) -> Escalation:
    """Record a denial. The guest can read the reason."""
    _require_reason(reason)
    return open_store(instance).answer(escalation_id, "denied", Answer(by=_who(), reason=reason, at=now()))


def revoke_approval(loaded: LoadedInstance, escalation_id: str, *, reason: str) -> Escalation:
    """End an approval now, and remove everything that it added."""
    _require_reason(reason)
    store = loaded.escalations
    found = store.find(escalation_id)
    if found.current != "approved" or found.answer is None:
        raise UsageError(
            f"{escalation_id} is {found.current}",
            where=loaded.instance_id,
            hint="only an approved escalation can be revoked",
        )
    if loaded.journal.state != "awake":
        pass  # a suspended instance does not have it, and does not get it when it is resumed
    elif found.packet.kind == "network":
        loaded.guard.revoke(escalation_id)
    elif found.packet.kind in LOANS:
        remove_loan(loaded, escalation_id, found.packet.kind)
    elif found.packet.kind == "secret":
        name = found.answer.request["name"]
        _open_secret(loaded, Secret(name, _path(name))).remove()
    return store.answer(escalation_id, "revoked", replace(found.answer, by=_who(), reason=reason, at=now()))


def find_stop(loaded: LoadedInstance, policy: OwnerPolicy) -> str:
    """Why a run beside this instance should stop: an escalation has waited for longer than the owner's `wait`. Else
    nothing."""
    for one in loaded.escalations.list():
        if one.current == "pending" and seconds_since(one.received_at) >= policy.escalations.wait:
            return one.id
    return ""


def find_pending(loaded: LoadedInstance) -> list[str]:
    """The ids of the escalations that wait for an answer."""
    return [one.id for one in loaded.escalations.list() if one.current == "pending"]


def _check(
    found: Escalation, approved: dict[str, Any], seconds: int, policy: OwnerPolicy, loaded: LoadedInstance
) -> None:
    packet, where = found.packet, loaded.instance_id
    refusal = check_request(packet, approved, seconds, policy.escalations)
    if refusal is not None:
        raise UsageError(refusal.message, where=where, hint=refusal.hint)
    if packet.kind in LOANS:
        others = [
            one for one in loaded.escalations.list() if one.packet.kind == packet.kind and one.current == "approved"
        ]
        check_loan(
            loaded, packet.kind, approved, policy, [one.answer.request for one in others if one.answer is not None]
        )


def _narrow(found: Escalation, request: dict[str, Any] | None) -> dict[str, Any]:
    """The request with the changes of `request`."""
    if request is None:
        return found.packet.request
    try:
        return parse_request(found.packet.kind, {**found.packet.request, **request})
    except ValueError as error:
        raise UsageError(
            f"the approval is not valid: {error}", where=found.id, hint="approve the request or a part of it"
        ) from None


def _check_source(loaded: LoadedInstance, policy: OwnerPolicy, source: Secret | None) -> dict[str, str]:
    if source is None:
        raise UsageError(
            "the source of the secret is missing",
            where=loaded.instance_id,
            hint="name it with --env VARIABLE or --file PATH",
        )
    refused = refuse_secret(source, policy, loaded.plan.facts.workspace or "/") or _refuse_use(loaded, policy, source)
    if refused:
        raise UsageError(
            refused,
            where=loaded.instance_id,
            hint="the owner of this host can allow it in /etc/ktrdr-vm/policy.yaml; an approval cannot",
        )
    # Read once now, so that an approval whose secret cannot be read is not recorded.
    read_source(source)
    return {"env": source.env} if source.env else {"file": source.file}


def _refuse_use(loaded: LoadedInstance, policy: OwnerPolicy, source: Secret) -> str:
    """The reason why the secret may not be in a guest with the destinations of this profile, or an empty text."""
    profile = loaded.plan.profile
    brokered = tuple(secret for secret in profile.secrets if secret.broker is not None)
    # Those of the profile that are delivered were checked with it; brokered ones add destinations.
    asked = replace(profile, secrets=(*brokered, source))
    problems = check_uses(asked, policy.uses) + check_presets(asked, loaded.plan.facts.presets, None, policy.uses)
    return next((message for _, message in problems if message), "")


def _make_entry(answer: Answer) -> Secret:
    name, source = answer.request["name"], answer.source
    return Secret(name, _path(name), env=source.get("env", ""), file=source.get("file", ""), ttl=answer.seconds)


def deliver_secret(loaded: LoadedInstance, entry: Secret) -> None:
    """Deliver one secret to the running guest, in addition to those of its profile."""
    _open_secret(loaded, entry).create()


def _open_secret(loaded: LoadedInstance, entry: Secret) -> SecretResource:
    return SecretResource(loaded.target, loaded.make_blueprint(read_source), entry, entry.name)


def _path(name: str) -> str:
    return f"/run/secrets/{name}"


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise UsageError(
            "an answer requires a reason", hint="use --reason TEXT; the report contains it and the guest can read it"
        )


def _who() -> str:
    """The user who answers, as known to the host."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
