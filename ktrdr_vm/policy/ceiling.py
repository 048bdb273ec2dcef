"""What the owner says of where things may go: which secret to which hosts, and which destinations any profile may name at all. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import Profile, Secret


@dataclass(frozen=True)
class Use:
    """Where a secret may go: one of `env` (a name, or a beginning and `*`), `file`, `command`, and hosts; `*` is anywhere."""

    hosts: tuple[str, ...]
    env: str = ""
    file: str = ""
    command: tuple[str, ...] = ()

    def covers(self, secret: Secret) -> bool:
        if secret.command or self.command:
            return secret.command == self.command
        if secret.file or self.file:
            return secret.file == self.file
        return fnmatch.fnmatchcase(secret.env, self.env)

    def reaches(self, destination: str) -> bool:
        return any(one == "*" or is_within(destination, one) for one in self.hosts)


def is_within(host: str, bound: str) -> bool:
    """True if `host`, a name or `*.` and a suffix, is within `bound`, which has one of the same two forms."""
    return host == bound or (bound.startswith("*.") and host.endswith(bound[1:]))


def allows(ceiling: Iterable[EgressRule], rule: EgressRule) -> bool:
    """True if the ceiling has every destination of the rule, with its ports."""
    for one in ceiling:
        if not set(rule.ports) <= set(one.ports):
            continue
        if rule.cidr is not None:
            if one.cidr is not None and rule.cidr.subnet_of(one.cidr):
                return True
        elif rule.host and one.host and is_within(rule.host, one.host):
            return True
    return False


def check_ceiling(profile: Profile, ceiling: tuple[EgressRule, ...] | None) -> list[tuple[tuple[str | int, ...], str]]:
    """Places in the profile, and what is wrong there. Presets are looked at when they are known: `check_presets`."""
    if ceiling is None:
        return []
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, rule in enumerate(profile.egress.allow):
        if rule.preset:
            continue
        if not allows(ceiling, rule):
            key = "cidr" if rule.cidr is not None else "host"
            problems.append((("egress", "allow", index, key), f"{rule} is beyond the owner's ceiling for egress"))
    for index, secret in enumerate(profile.secrets):
        if secret.broker is not None and not allows(ceiling, EgressRule(host=secret.broker.host)):
            problems.append((("secrets", index, "broker", "host"), f"{secret.broker.host}:443 is beyond the owner's ceiling for egress"))
    if profile.egress.mode == "observe":
        problems.append((("egress", "mode"), "observe mode is beyond any ceiling for egress"))
    return problems


def check_presets(
    profile: Profile,
    presets: Iterable[tuple[str, tuple[EgressRule, ...]]],
    ceiling: tuple[EgressRule, ...] | None,
    uses: tuple[Use, ...] | None,
) -> list[tuple[tuple[str | int, ...], str]]:
    """The same for what the profile's presets stand for: each is named in the ceiling, or all that it stands for lies within."""
    known = dict(presets)
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, rule in enumerate(profile.egress.allow):
        for one in known.get(rule.preset, ()) if rule.preset else ():
            place = ("egress", "allow", index, "preset")
            named = ceiling is None or any(bound.preset == rule.preset for bound in ceiling)
            if not named and not allows(ceiling or (), one):
                problems.append((place, f"the preset {rule.preset} reaches {one}, which is beyond the owner's ceiling for egress"))
                break
            kept = [secret for secret in profile.delivered if not _may_reach(secret, one.destination, uses)]
            if kept:
                problems.append((place, f"the secret {kept[0].name} may not go to {one}, which the preset {rule.preset} reaches"))
                break
    return problems


def check_uses(profile: Profile, uses: tuple[Use, ...] | None) -> list[tuple[tuple[str | int, ...], str]]:
    """A brokered secret goes to its host. One that is in the guest can go wherever the guest may: all of that must be in its list."""
    if uses is None:
        return []
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, secret in enumerate(profile.secrets):
        if not any(use.covers(secret) for use in uses):
            problems.append((("secrets", index, "source"), f"the owner names no hosts for {_source(secret)}"))
        elif secret.broker is not None and not _may_reach(secret, secret.broker.host, uses):
            problems.append((("secrets", index, "broker", "host"), f"{_source(secret)} may not go to {secret.broker.host}"))
    for secret in profile.delivered:
        if profile.egress.mode == "observe" and not _may_reach(secret, "*", uses):
            problems.append((("egress", "mode"), f"{_source(secret)} is in the guest, and observe mode would let it go anywhere"))
        for index, rule in enumerate(profile.egress.allow):
            if not rule.preset and not _may_reach(secret, rule.destination, uses):
                key = "cidr" if rule.cidr is not None else "host"
                message = f"{_source(secret)} is in the guest and may not go to {rule.destination}"
                problems.append((("egress", "allow", index, key), message))
        for number, other in enumerate(profile.secrets):
            if other.broker is not None and not _may_reach(secret, other.broker.host, uses):
                message = f"{_source(secret)} is in the guest and may not go to {other.broker.host}"
                problems.append((("secrets", number, "broker", "host"), message))
    return problems


def _may_reach(secret: Secret, destination: str, uses: tuple[Use, ...] | None) -> bool:
    return uses is None or any(use.covers(secret) and use.reaches(destination) for use in uses)


def _source(secret: Secret) -> str:
    return secret.env or secret.file or " ".join(secret.command)
