"""A profile from its text: strict YAML, the shape, `extends`, then frozen dataclasses. Pure; files come through
`read`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from ktrdr_vm.errors import DocumentError, KtrdrError, Problem
from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.checks import check_together, check_version
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import (
    Broker,
    Egress,
    ImageRef,
    Mount,
    Prepare,
    Profile,
    Secret,
    Size,
    Telemetry,
    Workload,
    Workspace,
)
from ktrdr_vm.profile.requests import is_limited, parse_requests, read_keys
from ktrdr_vm.profile.schema import PROFILE, check_shape, find_value
from ktrdr_vm.profile.strict_yaml import Document, Path, load_yaml

HINT = "correct the profile; `ktrdr-vm validate` shows all its errors, `ktrdr-vm validate --schema` the permitted keys"
MAX_EXTENDS = 8
# Lists that a profile adds to those of the profile it extends; every other list and value is replaced.
_ADDED = {("egress", "allow"), ("mounts",), ("secrets",), ("artifacts",)}

Read = Callable[[str, str], tuple[str, bytes]]
"""`read(reference, from_source)` gives the source name and the bytes of an extended profile, or raises KtrdrError."""


@dataclass
class LoadedProfile:
    """A profile, and the source of each of its values, for later errors."""

    profile: Profile
    data: dict[str, Any]
    """The merged document that `build_profile` made the profile from; a journal keeps it."""
    source: str
    origins: dict[Path, tuple[Document, Path]]

    def problem(self, path: Path, message: str) -> Problem:
        """A problem at a value of the merged profile, with its place in the file that contains the value."""
        at = path
        while at and at not in self.origins:
            at = at[:-1]
        document, there = self.origins[at]
        line, column = document.position((*there, *path[len(at) :]))
        return Problem(document.source, line, column, document.problem(path, "").path, message)


def load_profile(text: str | bytes, source: str, read: Read) -> LoadedProfile:
    """The profile, or a DocumentError with all errors of it and of the profiles that it extends."""
    problems: list[Problem] = []
    chain = _load_chain(text, source, read, problems)
    merged: Any = {}
    origins: dict[Path, tuple[Document, Path]] = {(): (chain[0], ())}
    for document in reversed(chain):
        if isinstance(document.data, dict):
            merged = _merge(merged, document.data, (), (), document, origins)
    merged.pop("extends", None)
    if not problems:
        # Each file is valid; the merged document must be complete.
        whole = Document(source, merged, chain[0].positions, chain[0].key_positions)
        problems.extend(check_shape(whole, PROFILE))
    if problems:
        raise DocumentError(problems, hint=HINT)
    loaded = LoadedProfile(build_profile(merged), merged, source, origins)
    if problems := [
        loaded.problem(path, message) for path, message in (*check_together(merged), *check_version(merged))
    ]:
        raise DocumentError(problems, hint=HINT)
    return loaded


def _load_chain(text: str | bytes, source: str, read: Read, problems: list[Problem]) -> list[Document]:
    """The profile first, then what it extends, each checked for its own shape."""
    chain: list[Document] = []
    seen: set[str] = set()
    while True:
        document = load_yaml(text, source, verbatim=("environment",))
        chain.append(document)
        seen.add(source)
        parent = document.data.get("extends") if isinstance(document.data, dict) else None
        shape = (
            {key: {**rule, "required": False} for key, rule in PROFILE.items()} if len(chain) > 1 or parent else PROFILE
        )
        wrong = check_shape(document, shape)
        problems.extend(wrong)
        for path, written in document.written.items():
            if path[:1] == ("vars",):
                problems.append(
                    document.problem(
                        path,
                        f"the number {written} would become {find_value(document.data, path)}; in quotes it is text",
                    )
                )
        # A name that no path can be is not read.
        if not isinstance(parent, str) or any(one.path == "extends" for one in wrong):
            return chain
        try:
            source, text = read(parent, source)
        except KtrdrError as error:
            problems.append(document.problem(("extends",), str(error)))
            return chain
        if source in seen:
            problems.append(document.problem(("extends",), "the profile extends itself"))
            return chain
        if len(chain) > MAX_EXTENDS:
            problems.append(document.problem(("extends",), f"it extends more than {MAX_EXTENDS} profiles"))
            return chain


def _merge(
    base: Any, over: Any, here: Path, there: Path, document: Document, origins: dict[Path, tuple[Document, Path]]
) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            merged[key] = _merge(base.get(key), value, (*here, key), (*there, key), document, origins)
        origins.setdefault(here, (document, there))
        return merged
    if isinstance(base, list) and isinstance(over, list) and here in _ADDED:
        for index in range(len(over)):
            origins[(*here, len(base) + index)] = (document, (*there, index))
        return base + copy.deepcopy(over)
    for path in [path for path in origins if path[: len(here)] == here and path]:
        del origins[path]
    origins[here] = (document, there)
    if isinstance(over, list):
        for index in range(len(over)):
            origins[(*here, index)] = (document, (*there, index))
    return copy.deepcopy(over)


def build_profile(data: dict[str, Any]) -> Profile:
    """A profile from a document that has passed all checks."""
    image = data["image"]
    size = data.get("resources", {})
    egress = data.get("egress") or {}
    workload, prepare = data.get("workload"), data.get("prepare")
    defaults = Size()
    return Profile(
        version=data["version"],
        name=data["name"],
        mode=data.get("mode", "sandbox"),
        image=ImageRef(recipe=image) if isinstance(image, str) else ImageRef(url=image["url"], sha256=image["sha256"]),
        resources=Size(
            vcpus=size.get("vcpus", defaults.vcpus),
            memory=scalars.parse_size(size["memory"]) if "memory" in size else defaults.memory,
            disk=scalars.parse_size(size["disk"]) if "disk" in size else defaults.disk,
        ),
        workspace=_workspace(data["workspace"]) if "workspace" in data else None,
        mounts=tuple(Mount(**mount) for mount in data.get("mounts", [])),
        egress=Egress(tuple(parse_rule(rule) for rule in egress.get("allow") or []), egress.get("mode", "enforce")),
        secrets=tuple(_secret(secret) for secret in data.get("secrets", [])),
        environment=tuple(sorted((name, _plain(value)) for name, value in data.get("environment", {}).items())),
        telemetry=Telemetry(**data.get("telemetry", {})),
        workload=None
        if workload is None
        else Workload(tuple(workload["command"]), scalars.parse_duration(workload.get("timeout", "2h"))),
        prepare=None if prepare is None else Prepare(prepare["playbook"], tuple(sorted(set(prepare["key"])))),
        verify=data.get("verify", "fresh"),
        gates=tuple(data.get("gates", [])),
        gate_timeout=scalars.parse_duration(data.get("gate_timeout", "30m")),
        vars=tuple(sorted(data.get("vars", {}).items())),
        artifacts=tuple(data.get("artifacts", [])),
        ttl=scalars.parse_duration(data["ttl"]) if "ttl" in data else 0,
    )


def _plain(value: object) -> str:
    """A scalar as a shell would expect it: YAML's true is `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _workspace(data: dict[str, Any]) -> Workspace:
    return Workspace(**{**data, "include": tuple(data.get("include", []))})


def parse_rule(data: dict[str, Any]) -> EgressRule:
    """An entry of an allowlist that has passed the schema."""
    network = ip_network(data["cidr"]) if "cidr" in data else None
    return EgressRule(
        host=data.get("host", ""),
        cidr=network if network is None or network.version == 4 else None,
        ports=tuple(sorted(set(data.get("ports", [443])))),
        reason=data.get("reason", ""),
        preset=data.get("preset", ""),
        requests=parse_requests(data) if is_limited(data) else None,
    )


def _secret(data: dict[str, Any]) -> Secret:
    return Secret(
        name=data["name"],
        path="" if "broker" in data else data.get("path", f"/run/secrets/{data['name']}"),
        env=data["source"].get("env", ""),
        file=data["source"].get("file", ""),
        command=tuple(data["source"].get("command", ())),
        mode=scalars.parse_file_mode(data.get("mode", "0400")),
        ttl=scalars.parse_duration(data.get("ttl", "2h")),
        broker=_broker(data["broker"]) if "broker" in data else None,
    )


def _broker(data: dict[str, Any]) -> Broker:
    return Broker(
        **read_keys(data),
        header=scalars.parse_header_template(data["header"]),
        after=data.get("after", ""),
        docker_mirror=data.get("docker_mirror", False),
    )
