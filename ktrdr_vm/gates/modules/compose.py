"""`docker_compose_v2`: `docker compose` in the guest, with the options of Ansible's module and its meaning of
`changed`."""

from __future__ import annotations

import json
import re
from typing import Any

from ktrdr_vm.errors import keep_end
from ktrdr_vm.gates.modules.base import Call, Result, command_result, text_of

# A line of `docker compose --progress plain`: ` Container demo-db-1  Started`.
_EVENT = re.compile(r"\s*(Container|Network|Volume|Image|Service)\s+\"?(\S+?)\"?\s+([A-Z][a-z]+)\s*")
# Characters; a longer line is none of these, and takes time.
_LONGEST_EVENT = 1000
_CHANGES = frozenset({"Created", "Started", "Recreated", "Removed", "Stopped", "Restarted", "Killed", "Pulled"})


def run_compose(call: Call) -> Result:
    state = str(call.get("state", "present"))
    steps = {"present": _up, "stopped": _stop, "restarted": _restart, "absent": _down}[state](call)
    src = str(call.get("project_src"))
    result: Result = {}
    actions: list[dict[str, str]] = []
    for arguments in steps:
        command = [*_base(call, src), *arguments]
        result = command_result(call.run(command, chdir=src), command)
        actions += _find_actions(result["stderr_lines"])
        if result["rc"] != 0:
            return result | {"changed": _changed(actions), "actions": actions, "msg": _reason(result)}
    result |= {"changed": _changed(actions), "actions": actions}
    if call.registered and state != "absent":
        result["containers"] = _containers(call, src)
    return result


def _base(call: Call, src: str) -> list[str]:
    command = ["docker", "compose", "--ansi", "never", "--progress", "plain", "--project-directory", src]
    if call.get("project_name"):
        command += ["--project-name", str(call.get("project_name"))]
    for option, flag in (("files", "--file"), ("profiles", "--profile"), ("env_files", "--env-file")):
        for value in call.get(option, []):
            command += [flag, str(value)]
    return [*command, "--dry-run"] if call.check else command


def _common(call: Call) -> list[str]:
    arguments = ["--remove-orphans"] if call.get("remove_orphans", False) else []
    return [*arguments, "--timeout", str(call.get("timeout"))] if call.get("timeout") is not None else arguments


def _services(call: Call) -> list[str]:
    return ["--", *(str(service) for service in call.get("services", []))]


def _up(call: Call, *, start: bool = True) -> list[list[str]]:
    arguments = ["up", "--detach", "--no-color", "--quiet-pull", *_common(call)]
    if not start:
        arguments = ["up", "--no-start", "--no-color", "--quiet-pull", *_common(call)]
    if call.get("pull", "policy") != "policy":
        arguments += ["--pull", str(call.get("pull"))]
    if call.get("build", "policy") != "policy":
        arguments.append("--build" if call.get("build") == "always" else "--no-build")
    if call.get("recreate", "auto") != "auto":
        arguments.append("--force-recreate" if call.get("recreate") == "always" else "--no-recreate")
    if not call.get("dependencies", True):
        arguments.append("--no-deps")
    if call.get("renew_anon_volumes", False):
        arguments.append("--renew-anon-volumes")
    for service, count in call.get("scale", {}).items():
        arguments += ["--scale", f"{service}={count}"]
    if start and call.get("wait", False):
        arguments.append("--wait")
        if call.get("wait_timeout") is not None:
            arguments += ["--wait-timeout", str(call.get("wait_timeout"))]
    return [[*arguments, *_services(call)]]


def _stop(call: Call) -> list[list[str]]:
    timeout = ["--timeout", str(call.get("timeout"))] if call.get("timeout") is not None else []
    return [*_up(call, start=False), ["stop", *timeout, *_services(call)]]


def _restart(call: Call) -> list[list[str]]:
    timeout = ["--timeout", str(call.get("timeout"))] if call.get("timeout") is not None else []
    dependencies = [] if call.get("dependencies", True) else ["--no-deps"]
    return [["restart", *timeout, *dependencies, *_services(call)]]


def _down(call: Call) -> list[list[str]]:
    arguments = ["down", *_common(call)]
    if call.get("remove_images"):
        arguments += ["--rmi", str(call.get("remove_images"))]
    if call.get("remove_volumes", False):
        arguments.append("--volumes")
    return [[*arguments, *_services(call)]]


def _find_actions(lines: list[str]) -> list[dict[str, str]]:
    """What the lines say about containers, networks, volumes, images and services. Each line is read alone: the guest
    writes them, and a search across lines takes hours in a megabyte of blank ones."""
    found = (_EVENT.fullmatch(line) for line in lines if len(line) <= _LONGEST_EVENT)
    return [{"what": one[1].lower(), "id": one[2], "status": one[3]} for one in found if one is not None]


def _changed(actions: list[dict[str, str]]) -> bool:
    return any(action["status"] in _CHANGES and action["what"] != "service" for action in actions)


def _reason(result: Result) -> str:
    """The last lines without progress messages, which contain the error of compose."""
    lines = [line.strip() for line in f"{result['stdout']}\n{result['stderr']}".splitlines()]
    telling = [
        line
        for line in lines
        if line
        and not (len(line) <= _LONGEST_EVENT and _EVENT.fullmatch(line))
        and not re.match(r"#\d+ (DONE|CACHED|sha256|\[)", line)
    ]
    said = keep_end(" / ".join(telling[-3:]), 1500) or "no message"
    return f"docker compose failed with exit code {result['rc']}: {said}"


def _containers(call: Call, src: str) -> list[Any]:
    """Parse the output of Docker: a list or one object a line, depending on its version."""
    found = call.run([*_base(call, src), "ps", "--all", "--format", "json"], chdir=src)
    text = text_of(found.stdout).strip()
    try:
        data = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError):
        return []
    return data if isinstance(data, list) else []
