"""The owner's limits on destinations: hosts to which a secret may be sent, and destinations that any profile may name.
Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import Profile, Secret


@dataclass(frozen=True)
class Use:
    """Hosts to which a secret may be sent: one of `env` (a name, or a prefix and `*`), `file`, `command`, and hosts;
    `*` is any host."""

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
    """True if one entry of the ceiling has every destination of the rule, with its ports, its methods and its paths."""
    for one in ceiling:
        if not set(rule.ports) <= set(one.ports):
            continue
        if one.requests is not None and (rule.requests is None or not one.requests.covers(rule.requests)):
            continue
        if rule.cidr is not None:
            if one.cidr is not None and rule.cidr.subnet_of(one.cidr):
                return True
        elif rule.host and one.host and is_within(rule.host, one.host):
            return True
    return False


def check_ceiling(profile: Profile, ceiling: tuple[EgressRule, ...] | None) -> list[tuple[tuple[str | int, ...], str]]:
    """Places in the profile and their errors. Presets are checked by `check_presets` when their hosts are known."""
    if ceiling is None:
        return []
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, rule in enumerate(profile.egress.allow):
        if rule.preset:
            continue
        if not allows(ceiling, rule):
            key = "cidr" if rule.cidr is not None else "host"
            problems.append((("egress", "allow", index, key), f"{rule} exceeds the owner's ceiling for egress"))
    for index, secret in enumerate(profile.secrets):
        if secret.broker is not None and not allows(
            ceiling, used := EgressRule(host=secret.broker.host, requests=secret.broker)
        ):
            problems.append((("secrets", index, "broker", "host"), f"{used} exceeds the owner's ceiling for egress"))
    if profile.egress.mode == "observe":
        problems.append((("egress", "mode"), "observe mode exceeds any ceiling for egress"))
    return problems


def check_presets(
    profile: Profile,
    presets: Iterable[tuple[str, tuple[EgressRule, ...]]],
    ceiling: tuple[EgressRule, ...] | None,
    uses: tuple[Use, ...] | None,
) -> list[tuple[tuple[str | int, ...], str]]:
    """The same for presets: the ceiling must name the preset, or contain all destinations of it.

    A preset must not allow a host that another rule allows by methods and paths only.
    """
    known = dict(presets)
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, rule in enumerate(profile.egress.allow):
        for one in known.get(rule.preset, ()) if rule.preset else ():
            place = ("egress", "allow", index, "preset")
            named = ceiling is None or any(bound.preset == rule.preset for bound in ceiling)
            if not named and not allows(ceiling or (), one):
                problems.append(
                    (place, f"the preset {rule.preset} reaches {one}, which exceeds the owner's ceiling for egress")
                )
                break
            if limited := [
                limit.host
                for limit in profile.limited
                if is_within(limit.host, one.host) and {80, 443} & set(one.ports)
            ]:
                problems.append(
                    (
                        place,
                        f"the preset {rule.preset} allows {limited[0]} without methods and paths, and so every request",
                    )
                )
                break
            kept = [secret for secret in profile.delivered if not _may_reach(secret, one.destination, uses)]
            if kept:
                problems.append(
                    (
                        place,
                        f"the secret {kept[0].name} may not be sent to {one}, which the preset {rule.preset} reaches",
                    )
                )
                break
    return problems


def check_uses(profile: Profile, uses: tuple[Use, ...] | None) -> list[tuple[tuple[str | int, ...], str]]:
    """A brokered secret is sent to its host only. A secret in the guest can be sent to every allowed destination, so
    all must be listed."""
    if uses is None:
        return []
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, secret in enumerate(profile.secrets):
        if not any(use.covers(secret) for use in uses):
            problems.append((("secrets", index, "source"), f"the owner's policy names no hosts for {_source(secret)}"))
        elif secret.broker is not None and not _may_reach(secret, secret.broker.host, uses):
            problems.append(
                (("secrets", index, "broker", "host"), f"{_source(secret)} may not be sent to {secret.broker.host}")
            )
    for secret in profile.delivered:
        if profile.egress.mode == "observe" and not _may_reach(secret, "*", uses):
            problems.append(
                (
                    ("egress", "mode"),
                    f"{_source(secret)} is in the guest, and with observe mode it could be sent anywhere",
                )
            )
        for index, rule in enumerate(profile.egress.allow):
            if not rule.preset and not _may_reach(secret, rule.destination, uses):
                key = "cidr" if rule.cidr is not None else "host"
                message = f"{_source(secret)} is in the guest and may not be sent to {rule.destination}"
                problems.append((("egress", "allow", index, key), message))
        for number, other in enumerate(profile.secrets):
            if other.broker is not None and not _may_reach(secret, other.broker.host, uses):
                message = f"{_source(secret)} is in the guest and may not be sent to {other.broker.host}"
                problems.append((("secrets", number, "broker", "host"), message))
    return problems


def _may_reach(secret: Secret, destination: str, uses: tuple[Use, ...] | None) -> bool:
    return uses is None or any(use.covers(secret) and use.reaches(destination) for use in uses)


def _source(secret: Secret) -> str:
    return secret.env or secret.file or " ".join(secret.command)
