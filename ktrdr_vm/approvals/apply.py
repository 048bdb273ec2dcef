"""Answers to escalations: checked against the owner's policy, applied to the running instance, recorded, revoked.

An approval may narrow a request, and never exceed it. It cannot allow what the owner's policy does not allow to a
profile.
"""

from __future__ import annotations

import getpass
import os
from dataclasses import replace
from typing import Any

from ktrdr_vm.approvals.loans import LOANS, check_loan, end_soon, lend
from ktrdr_vm.approvals.loans import take_back as end_loan
from ktrdr_vm.egress.client import grant, revoke
from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.escalation.decision import check_request
from ktrdr_vm.escalation.packet import parse_request
from ktrdr_vm.escalation.store import Answer, Escalation, EscalationStore
from ktrdr_vm.host.clock import boottime, now, read_boot_id, seconds_since
from ktrdr_vm.instance.escalations import open_store
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.resources.secret import Secret as SecretResource
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.policy.owner_policy import OwnerPolicy, refuse_secret
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import Secret


def approve(
    instance: Instance,
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
    store = open_store(instance)
    found = store.find(escalation_id)
    # A waiting one was approved by a command that was killed before it was applied, or while the instance was suspended.
    if found.current != "pending" and not (found.current == "approved" and found.answer is not None and found.answer.waiting):
        raise UsageError(
            f"{escalation_id} is {found.current}", where=instance.identity.instance_id, hint="only a pending escalation can be approved"
        )
    _require_reason(reason)
    given = _narrow(found, request)
    lasting = seconds if seconds is not None else found.packet.seconds
    _check(found, given, lasting, policy, instance)
    answer = Answer(by=_who(), reason=reason, at=now(), request=given, seconds=lasting)
    if found.packet.kind == "secret":
        answer = replace(answer, source=_check_source(instance, policy, source))
    if instance.require_journal().state != "awake":
        return store.answer(escalation_id, "approved", replace(answer, waiting=found.packet.kind != "decision"))
    with store.approving(escalation_id, answer) as settle:
        settle(_give(instance, found, answer, policy).ends)
    return store.find(escalation_id)


def check_sources(instance: Instance) -> None:
    """Before a resume: UsageError or HostError if a secret of an approval cannot be read."""
    for one in open_store(instance).list():
        if one.packet.kind == "secret" and one.current == "approved" and one.answer is not None:
            read_source(_make_entry(one.answer))


def reapply(instance: Instance, policy: OwnerPolicy) -> list[Escalation]:
    """After a resume: apply approvals that were given meanwhile, and reapply those that have not expired. Return the applied ones.

    A failure does not prevent the others; a ProvisionError at the end names all that failed.
    """
    store = open_store(instance)
    given, failed = [], []
    for one in store.list():
        if one.current != "approved" or one.answer is None or one.packet.kind == "decision":
            continue
        answer = one.answer
        try:
            if answer.waiting:
                given.append(store.answer(one.id, "approved", _give(instance, one, replace(answer, waiting=False), policy)))
            elif answer.ends is not None:
                left = max(1, int(answer.ends[1] - boottime()))
                _give(instance, one, replace(answer, seconds=left), policy)
                given.append(one)
        except KtrdrError as error:
            failed.append((one.id, error))
    ended = [one for one in store.list() if one.packet.kind == "resources" and one.current in ("expired", "revoked")]
    if ended and not any(one.packet.kind == "resources" for one in given):
        end_soon(instance, ended[-1].id)
    if failed:
        name = instance.identity.instance_id
        raise ProvisionError(
            "not reapplied: " + "; ".join(f"{escalation_id}: {error.message}" for escalation_id, error in failed),
            where=name,
            hint=f"correct the cause and `ktrdr-vm resume {name}`, or `ktrdr-vm escalations revoke {name} {failed[0][0]}`",
        )
    return given


def _give(instance: Instance, one: Escalation, answer: Answer, policy: OwnerPolicy) -> Answer:
    """Apply an approval to the running instance. Return the answer with its expiry, which for a grant is that of the guard."""
    lasting: float = answer.seconds
    if one.packet.kind == "network":
        rule = EgressRule(host=answer.request["host"], ports=tuple(answer.request["ports"]), reason=answer.reason)
        lasting = grant(instance.paths.guard, one.id, rule, answer.seconds).seconds
    elif one.packet.kind == "secret":
        deliver_secret(instance, _make_entry(answer))
    elif one.packet.kind in LOANS:
        lend(instance, one.id, one.packet.kind, answer.request, policy, seconds=answer.seconds, reason=answer.reason)
    else:
        return answer
    return replace(answer, ends=(read_boot_id(), boottime() + lasting))


def deny(instance: Instance, escalation_id: str, *, reason: str) -> Escalation:
    """Record a denial. The guest can read the reason."""
    _require_reason(reason)
    return open_store(instance).answer(escalation_id, "denied", Answer(by=_who(), reason=reason, at=now()))


def revoke_approval(instance: Instance, escalation_id: str, *, reason: str) -> Escalation:
    """Revoke an approval, and remove everything that it added."""
    _require_reason(reason)
    store = open_store(instance)
    found = store.find(escalation_id)
    if found.current != "approved" or found.answer is None:
        raise UsageError(
            f"{escalation_id} is {found.current}", where=instance.identity.instance_id, hint="only an approved escalation can be revoked"
        )
    if instance.require_journal().state != "awake":
        pass  # nothing is applied to a suspended instance, and it is not reapplied at the resume
    elif found.packet.kind == "network":
        revoke(instance.paths.guard, escalation_id)
    elif found.packet.kind in LOANS:
        end_loan(instance, escalation_id, found.packet.kind)
    elif found.packet.kind == "secret":
        name = found.answer.request["name"]
        _open_secret(instance, Secret(name, _path(name))).remove()
    return store.answer(escalation_id, "revoked", replace(found.answer, by=_who(), reason=reason, at=now()))


def find_stop(instance: Instance, policy: OwnerPolicy) -> str:
    """The reason why the run should stop, if an escalation has waited for longer than `wait` of the policy; else an empty text."""
    store = EscalationStore(instance.paths.escalations, instance.identity.instance_id)
    for one in store.list():
        if one.current == "pending" and seconds_since(one.received_at) >= policy.escalations.wait:
            return one.id
    return ""


def find_pending(instance: Instance) -> list[str]:
    """The ids of pending escalations."""
    store = EscalationStore(instance.paths.escalations, instance.identity.instance_id)
    return [one.id for one in store.list() if one.current == "pending"]


def _check(found: Escalation, given: dict[str, Any], seconds: int, policy: OwnerPolicy, instance: Instance) -> None:
    packet, where = found.packet, instance.identity.instance_id
    refusal = check_request(packet, given, seconds, policy.escalations)
    if refusal is not None:
        raise UsageError(refusal.message, where=where, hint=refusal.hint)
    if packet.kind in LOANS:
        others = [one for one in open_store(instance).list() if one.packet.kind == packet.kind and one.current == "approved"]
        check_loan(instance, packet.kind, given, policy, [one.answer.request for one in others if one.answer is not None])


def _narrow(found: Escalation, request: dict[str, Any] | None) -> dict[str, Any]:
    """The request with the changes of `request`."""
    if request is None:
        return found.packet.request
    try:
        return parse_request(found.packet.kind, {**found.packet.request, **request})
    except ValueError as error:
        raise UsageError(f"the approval is not valid: {error}", where=found.id, hint="approve the request or a part of it") from None


def _check_source(instance: Instance, policy: OwnerPolicy, source: Secret | None) -> dict[str, str]:
    if source is None:
        raise UsageError(
            "the source of the secret is missing", where=instance.identity.instance_id, hint="name it with --env VARIABLE or --file PATH"
        )
    refused = refuse_secret(source, policy, instance.plan.facts.workspace or "/")
    if refused:
        raise UsageError(
            refused,
            where=instance.identity.instance_id,
            hint="the owner of this host can allow it in /etc/ktrdr-vm/policy.yaml; an approval cannot",
        )
    # Read once now, so that an approval whose secret cannot be read is not recorded.
    read_source(source)
    return {"env": source.env} if source.env else {"file": source.file}


def _make_entry(answer: Answer) -> Secret:
    name, source = answer.request["name"], answer.source
    return Secret(name, _path(name), env=source.get("env", ""), file=source.get("file", ""), ttl=answer.seconds)


def deliver_secret(instance: Instance, entry: Secret) -> None:
    """Deliver one secret into the running guest, in addition to those of its profile."""
    _open_secret(instance, entry).create()


def _open_secret(instance: Instance, entry: Secret) -> SecretResource:
    [overlay] = [one for one in instance.open_resources(read_secret=read_source) if one.kind == "overlay"]
    return SecretResource(overlay.target, overlay.blueprint, entry, entry.name)


def _path(name: str) -> str:
    return f"/run/secrets/{name}"


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise UsageError("an answer requires a reason", hint="use --reason TEXT; the report contains it and the guest can read it")


def _who() -> str:
    """The user who answers, as known to the host."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
