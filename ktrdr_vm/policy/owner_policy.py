"""The owner's policy: the limits of every profile, `extends`, preset and grant. The default is safe.

The repository is not trusted: a profile can come from a branch that an agent wrote. The policy comes
from the owner of the host only.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Any

from ktrdr_vm.errors import DocumentError, Problem
from ktrdr_vm.policy.ceiling import Use, check_ceiling, check_uses
from ktrdr_vm.policy.schema import POLICY
from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.collector import Collector, parse_collector
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import LoadedProfile, parse_rule
from ktrdr_vm.profile.model import Secret, Size
from ktrdr_vm.profile.personal import find_personal
from ktrdr_vm.profile.reserved import is_reserved
from ktrdr_vm.profile.schema import check_shape
from ktrdr_vm.profile.strict_yaml import load_yaml

POLICY_PATH = "/etc/ktrdr-vm/policy.yaml"
HINT = f"the owner of this host can allow it in {POLICY_PATH}; a profile cannot"


# Seconds of a pre-approval without a duration.
_PREAPPROVED = 3600
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class PreApproval:
    """A pre-approval of a request for the network. `host` may be `*.` and a suffix."""

    host: str
    ports: tuple[int, ...]
    seconds: int


@dataclass(frozen=True)
class EscalationPolicy:
    """The limits of escalations. A run continues for `wait` seconds with an unanswered one; `longest` bounds every
    approval."""

    kinds: tuple[str, ...] = ("network", "secret", "decision")
    wait: int = 600
    longest: int = 8 * 3600
    hook: tuple[str, ...] = ()
    approved: tuple[PreApproval, ...] = ()


@dataclass(frozen=True)
class TrustedProject:
    """A repository of this host by its folder, and the branches of it that the owner trusts."""

    path: str
    refs: tuple[str, ...]


@dataclass(frozen=True)
class OwnerPolicy:
    """Without a file: mounts from the workspace only, secrets from KTRDR_* only, nothing reserved, no observe mode."""

    mount_roots: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ("KTRDR_*",)
    secret_files: tuple[str, ...] = ()
    secret_commands: tuple[tuple[str, ...], ...] = ()
    reserved: frozenset[tuple[IPv4Address, int]] = frozenset()
    observe: bool = False
    uses: tuple[Use, ...] | None = None
    """The hosts to which secrets may be sent. None: no limit, but a person must confirm additions to the trusted
    branch."""
    ceiling: tuple[EgressRule, ...] | None = None
    """The destinations that any profile may name; None: no limit."""
    projects: tuple[TrustedProject, ...] = ()
    """As `prepare_refs`, each for one repository."""
    prepare_refs: tuple[str, ...] = ()
    """Branches from which templates of a project may be made. Commits of agents must not be on them."""
    image_sources: tuple[str, ...] = ("https://",)
    """Prefixes of which the URL of an image must have one, because root fetches it and the profile is not trusted."""
    largest: Size = Size(vcpus=16, memory=32768, disk=204800)
    most_instances: int = 100
    longest_life: int = 0
    """The maximal time to live of an instance in seconds; 0 is unlimited."""
    publish_command: tuple[str, ...] = ()
    signing_key: str = ""
    verify_notify: tuple[str, ...] = ()
    """A command that receives the status of each commit that `ktrdr-vm verify` judges."""
    escalations: EscalationPolicy = EscalationPolicy()
    collector: Collector | None = None
    """The collector for telemetry of instances, or None."""
    reports_runs: bool = False
    """True if the program sends telemetry of its own runs to the collector as well."""


def parse_policy(text: str | bytes, source: str = POLICY_PATH) -> OwnerPolicy:
    document = load_yaml(text, source)
    if document.data is None:
        return OwnerPolicy()
    problems = check_shape(document, POLICY)
    reserved: set[tuple[IPv4Address, int]] = set()
    if not problems:
        for index, entry in enumerate(document.data.get("egress", {}).get("reserved", [])):
            address, _, port = entry.partition(":")
            try:
                reserved.add((IPv4Address(address), int(port)))
            except ValueError as error:
                problems.append(document.problem(("egress", "reserved", index), str(error)))
    collector = None
    if not problems and "telemetry" in document.data:
        try:
            collector = parse_collector(document.data["telemetry"])
        except ValueError as error:
            problems.append(document.problem(("telemetry", "collector"), str(error)))
    if not problems:
        problems += [
            document.problem(place, message)
            for place, message in _check_preapprovals(document.data.get("escalations", {}))
        ]
    if problems:
        raise DocumentError(problems, hint="correct the owner's policy; no instance starts while it is invalid")
    data, default = document.data, OwnerPolicy()
    largest = data.get("resources", {}).get("max", {})
    return OwnerPolicy(
        mount_roots=tuple(data.get("mounts", {}).get("roots", ())),
        secret_env=(*default.secret_env, *data.get("secrets", {}).get("env", ())),
        secret_commands=tuple(tuple(words) for words in data.get("secrets", {}).get("commands", ())),
        secret_files=tuple(data.get("secrets", {}).get("files", ())),
        reserved=frozenset(reserved),
        observe=data.get("egress", {}).get("observe", False),
        image_sources=tuple(data.get("images", {}).get("sources", default.image_sources)),
        prepare_refs=tuple(data.get("prepare", {}).get("refs", ())),
        projects=tuple(
            TrustedProject(one["path"], tuple(one["refs"])) for one in data.get("prepare", {}).get("projects", ())
        ),
        uses=_uses(data.get("secrets", {})),
        ceiling=tuple(parse_rule(one) for one in data["egress"]["ceiling"])
        if "ceiling" in data.get("egress", {})
        else None,
        largest=Size(
            vcpus=largest.get("vcpus", default.largest.vcpus),
            memory=scalars.parse_size(largest["memory"]) if "memory" in largest else default.largest.memory,
            disk=scalars.parse_size(largest["disk"]) if "disk" in largest else default.largest.disk,
        ),
        most_instances=data.get("instances", {}).get("max", default.most_instances),
        longest_life=scalars.parse_duration(data["instances"]["ttl"]) if "ttl" in data.get("instances", {}) else 0,
        publish_command=tuple(data.get("publish", {}).get("command", ())),
        verify_notify=tuple(data.get("verify", {}).get("notify", ())),
        signing_key=data.get("publish", {}).get("signing_key", ""),
        escalations=_escalations(data.get("escalations", {})),
        collector=collector,
        reports_runs=data.get("telemetry", {}).get("runs", False),
    )


def _uses(data: dict[str, Any]) -> tuple[Use, ...] | None:
    if "uses" not in data:
        return None
    return tuple(
        Use(tuple(one["hosts"]), one.get("env", ""), one.get("file", ""), tuple(one.get("command", ())))
        for one in data["uses"]
    )


def _escalations(data: dict[str, Any]) -> EscalationPolicy:
    default = EscalationPolicy()
    longest = scalars.parse_duration(data["longest"]) if "longest" in data else default.longest
    return EscalationPolicy(
        kinds=tuple(data.get("kinds", default.kinds)),
        wait=scalars.parse_duration(data["wait"]) if "wait" in data else default.wait,
        longest=longest,
        hook=tuple(data.get("hook", ())),
        approved=tuple(
            PreApproval(
                one["host"],
                tuple(one.get("ports", (443,))),
                scalars.parse_duration(one["longest"]) if "longest" in one else min(_PREAPPROVED, longest),
            )
            for one in data.get("approve", ())
        ),
    )


def _check_preapprovals(data: dict[str, Any]) -> list[tuple[Place, str]]:
    """Errors of `approve` entries that exceed `kinds` or `longest`, and would never apply."""
    line, found = _escalations(data), []
    for index, (entry, one) in enumerate(zip(data.get("approve", ()), line.approved, strict=True)):
        place: Place = ("escalations", "approve", index)
        if "network" not in line.kinds:
            found.append((place, "escalations.kinds does not contain network, so this entry approves nothing"))
        if "longest" in entry and one.seconds > line.longest:
            found.append(((*place, "longest"), f"{one.seconds} s is longer than escalations.longest, {line.longest} s"))
    return found


def check_policy(loaded: LoadedProfile, policy: OwnerPolicy, workspace: str) -> list[Problem]:
    """All parts of the profile that the owner's policy does not allow. `workspace` is the absolute folder of
    `--workspace`.

    Paths are compared as written; when a mount is created, the path is opened again without following links.
    """
    profile, problems = loaded.profile, []
    for name in ("vcpus", "memory", "disk"):
        wanted, most = getattr(profile.resources, name), getattr(policy.largest, name)
        if wanted > most:
            problems.append(
                loaded.problem(("resources", name), f"{wanted} is more than the {most} of the owner's policy")
            )
    if profile.image.url and not profile.image.url.startswith(policy.image_sources):
        sources = " or ".join(policy.image_sources) or "recipes only"
        problems.append(
            loaded.problem(("image", "url"), f"the owner's policy allows images from {sources} (images.sources)")
        )
    if policy.longest_life and profile.ttl > policy.longest_life:
        problems.append(
            loaded.problem(
                ("ttl",), f"{profile.ttl} s is longer than the {policy.longest_life} s of the owner's policy"
            )
        )
    for index, mount in enumerate(profile.mounts):
        reason = refuse_path(mount.source, workspace, (workspace, *policy.mount_roots))
        if reason:
            problems.append(loaded.problem(("mounts", index, "source"), reason))
    if profile.workspace:
        reason = refuse_path(profile.workspace.source, workspace, (workspace,))
        if reason:
            problems.append(loaded.problem(("workspace", "source"), reason))
    for index, secret in enumerate(profile.secrets):
        reason = refuse_secret(secret, policy, workspace)
        if reason:
            problems.append(
                loaded.problem(
                    ("secrets", index, "source", "command" if secret.command else "env" if secret.env else "file"),
                    reason,
                )
            )
    for index, rule in enumerate(profile.egress.allow):
        problems.extend(
            loaded.problem(("egress", "allow", index, "cidr"), message) for message in refuse_reserved(rule, policy)
        )
    for path, message in (*check_ceiling(profile, policy.ceiling), *check_uses(profile, policy.uses)):
        problems.append(loaded.problem(path, message))
    if profile.telemetry.otlp and policy.collector is None:
        problems.append(loaded.problem(("telemetry", "otlp"), "the owner's policy names no collector"))
    if profile.egress.mode == "observe" and not policy.observe:
        problems.append(loaded.problem(("egress", "mode"), "observe mode is not allowed on this host"))
    return problems


def refuse_path(source: str, base: str, roots: tuple[str, ...]) -> str:
    """The reason why a path of the host may not be used, or an empty text. `source` is relative to `base`."""
    path = PurePosixPath(base, source)
    personal = find_personal(path.relative_to(base).parts if path.is_relative_to(base) else path.parts)
    if personal:
        return f"a personal folder or file ({personal}) is never shared with a sandbox"
    if ".git" in path.parts:
        return "the repository's .git is never mounted"
    if roots and not any(path.is_relative_to(root) for root in roots):
        return f"{path} is neither in the workspace nor in a root of the owner's policy (mounts.roots)"
    return ""


def refuse_secret(secret: Secret, policy: OwnerPolicy, base: str) -> str:
    """The reason why a source may not be used for a secret, or an empty text. Personal files and folders and a `.git`
    never may."""
    if secret.command:
        allowed = secret.command in policy.secret_commands
        return (
            ""
            if allowed
            else f"the owner's policy does not allow the command {' '.join(secret.command)} as a source of secrets"
        )
    if secret.env:
        if any(fnmatch.fnmatchcase(secret.env, pattern) for pattern in policy.secret_env):
            return ""
        return f"the owner's policy does not allow the variable {secret.env} as a source of secrets"
    if secret.file not in policy.secret_files or refuse_path(secret.file, base, ()):
        return f"the owner's policy does not allow the file {secret.file} as a source of secrets"
    return ""


def refuse_reserved(rule: EgressRule, policy: OwnerPolicy) -> list[str]:
    """The errors of the addresses of a rule: the policy must list each reserved address and port exactly."""
    if rule.cidr is None or not is_reserved(rule.cidr):
        return []
    if rule.cidr.prefixlen != 32:
        return [f"{rule.cidr} overlaps with a reserved range; only single addresses can be allowed there"]
    missing = [port for port in rule.ports if (rule.cidr.network_address, port) not in policy.reserved]
    return [
        f"{rule.cidr.network_address}:{port} is in a reserved range and not in egress.reserved of the owner's policy"
        for port in missing
    ]
