"""Checks of a profile that its schema cannot express: values that exclude each other, and features that this version
does not support."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.guest_ground import LEAST_MEMORY, refuse_target, refuse_variable
from ktrdr_vm.profile.requests import check_requests
from ktrdr_vm.profile.strict_yaml import Path

# The variables that contain the OTLP endpoint.
TELEMETRY_VARIABLES = frozenset({"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"})

Found = list[tuple[Path, str]]
"""A place in the merged document, and its error."""


def check_together(data: dict[str, Any]) -> Found:
    """Errors that involve several values, such as names and targets that must differ."""
    problems: Found = []
    targets: dict[str, str] = {}
    workspace = data.get("workspace")
    if workspace is not None:
        targets[workspace.get("target", "/workspace")] = "the workspace"
        if reason := refuse_target(workspace.get("target", "/workspace")):
            problems.append((("workspace", "target"), f"cannot be the place of the workspace: {reason}"))
    for index, mount in enumerate(data.get("mounts", [])):
        target = mount["target"]
        if reason := refuse_target(target, hides=True):
            problems.append((("mounts", index, "target"), f"{target} cannot be a mount point: {reason}"))
        for other, owner in targets.items():
            if target == other or target.startswith(other + "/") or other.startswith(target + "/"):
                problems.append((("mounts", index, "target"), f"overlaps with {owner} at {other}"))
        targets[target] = f"mounts[{index}]"
    for field in ("name", "path"):
        seen: set[str] = set()
        for index, secret in enumerate(data.get("secrets", [])):
            if field == "path" and "broker" in secret:
                continue
            value = secret.get(field, f"/run/secrets/{secret['name']}")
            if value in seen:
                problems.append((("secrets", index, field), f"{value} occurs twice"))
            seen.add(value)
    problems += _check_variables(data)
    problems += check_requests(data)
    memory = data.get("resources", {}).get("memory")
    if memory is not None and scalars.parse_size(memory) < LEAST_MEMORY:
        problems.append(
            (("resources", "memory"), f"a guest cannot boot with {memory}; the minimum is {LEAST_MEMORY}MiB")
        )
    if data.get("workload", {}).get("command", ["-"])[0] == "":
        problems.append((("workload", "command", 0), "must name a program"))
    if "prepare" in data and workspace is None:
        problems.append((("prepare",), "requires a workspace, and the profile has none"))
    for index, gate in enumerate(data.get("gates", [])):
        if gate in data["gates"][:index]:
            problems.append((("gates", index), f"{gate} occurs twice"))
    return problems


def _check_variables(data: dict[str, Any]) -> Found:
    problems: Found = []
    variables = set(data.get("environment", {}))
    problems += [(("environment", name), reason) for name in sorted(variables) if (reason := refuse_variable(name))]
    for name, value in data.get("environment", {}).items():
        try:
            scalars.parse_word(str(value))
        except ValueError as error:
            problems.append((("environment", name), str(error)))
    if data.get("telemetry", {}).get("otlp"):
        if taken := variables & TELEMETRY_VARIABLES:
            problems.append((("telemetry", "otlp"), f"sets {min(taken)}, which environment sets too"))
        variables |= TELEMETRY_VARIABLES
    named: list[tuple[Path, str | None]] = [
        *(
            (("secrets", index, "broker"), one.get("broker", {}).get("base_url_env"))
            for index, one in enumerate(data.get("secrets", []))
        ),
        *(
            (("egress", "allow", index), one.get("base_url_env"))
            for index, one in enumerate((data.get("egress") or {}).get("allow") or [])
        ),
    ]
    for place, variable in named:
        if variable in variables:
            problems.append(((*place, "base_url_env"), f"{variable} occurs twice"))
        if variable:
            variables.add(variable)
            if reason := refuse_variable(variable):
                problems.append(((*place, "base_url_env"), reason))
    for index, secret in enumerate(data.get("secrets", [])):
        broker = secret.get("broker", {})
        gate = broker.get("after")
        if broker.get("docker_mirror") and broker.get("base_path", "/") != "/":
            problems.append(
                (("secrets", index, "broker", "base_path"), "must be /, because Docker supports mirrors at / only")
            )
        if gate and gate not in data.get("gates", []):
            problems.append((("secrets", index, "broker", "after"), f"{gate} is not a gate of the profile"))
    return problems


def check_version(data: dict[str, Any]) -> Found:
    """Features of the format that this version does not support."""
    problems: Found = []
    if data.get("workspace", {}).get("transfer") == "mount":
        problems.append((("workspace", "transfer"), "a mounted workspace is not supported in this version; use copy"))
    for index, mount in enumerate(data.get("mounts", [])):
        if not mount.get("readonly", True):
            message = "a writable folder is not supported in this version; results are returned as artifacts or commits"
            problems.append((("mounts", index, "readonly"), message))
    for index, path in enumerate(data.get("artifacts", ())):
        if set(path) & set("*?["):
            message = "patterns are not supported for paths in the guest; name the folder, and its contents are copied"
            problems.append((("artifacts", index), message))
    return problems
