"""The playbooks that a repository needs besides the shipped ones: `starts` for its compose file, `checks` for its own
commands. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.init.compose import ComposeFile
from ktrdr_vm.init.document import comment, dump, indent
from ktrdr_vm.init.survey import Survey

TARGET = "/workspace"
# Seconds for images to be pulled and built, and until a service answers.
_BUILD, _SETTLE = 1800, 8
# What `docker compose ps` prints of each container, and the containers that did not start.
_STATES = """\
{% raw %}
sleep SETTLE
states=$(docker compose ps --all --format '{{.Service}} {{.State}} {{.ExitCode}}')
echo "$states"
[ -n "$states" ] || { echo "no container was created" >&2; exit 1; }
fallen=$(echo "$states" | awk '($2 == "exited" && $3 != 0) || $2 == "restarting" || $2 == "dead"')
[ -z "$fallen" ] || { echo "did not stay up: $fallen" >&2; exit 1; }
{% endraw %}
""".replace("SETTLE", str(_SETTLE))


@dataclass(frozen=True)
class Step:
    """A task and the reason for it."""

    reason: str
    task: dict[str, Any]


def uses_shipped_gate(survey: Survey, compose: ComposeFile) -> bool:
    """True if the shipped Startability Gate fits: it asks an API for its health, and PostgreSQL for an answer."""
    api = compose.api
    return bool(api and api.health_path and compose.database) and not _copies_env_file(survey, compose)


def draft_starts(survey: Survey, compose: ComposeFile) -> str:
    """The playbook that starts the stack of the compose file, and removes it."""
    folder = f"{TARGET}/{compose.folder}".rstrip("/")
    steps = []
    if _copies_env_file(survey, compose):
        source = survey.env_example or ".env.example"
        steps.append(
            Step(
                f"{source} exists, and .env is usually not in Git. CHANGE: values that have to be real, as secrets in"
                " ktrdr.yaml.",
                _shell("the environment file exists", f"test -e .env || cp {TARGET}/{source} .env", folder),
            )
        )
    steps += [
        Step(
            f"{compose.name} is complete and valid.",
            _shell("configuration valid", "docker compose config --quiet", folder, changed_when=False),
        ),
        *(
            Step(f"{compose.name} declares it as external.", _create_external(kind, name, folder))
            for kind, names in (("network", compose.external_networks), ("volume", compose.external_volumes))
            for name in names
        ),
        Step(
            _describe_services(compose),
            _shell(
                "containers build and start",
                "docker compose --ansi never --progress plain up --detach --build --remove-orphans",
                folder,
                timeout=_BUILD,
            ),
        ),
        Step(
            f"A container that ends with an error within {_SETTLE} seconds has not started.",
            _shell("services stay up", _STATES, folder, changed_when=False),
        ),
    ]
    if api := compose.api:
        path = api.health_path or "/"
        steps.append(
            Step(
                f"{api.name} publishes port {api.http_port}. "
                + (
                    f"Its health check uses {path}."
                    if api.health_path
                    else "CHANGE: the path of its health check, and its status."
                ),
                {
                    "name": f"{api.name} answers",
                    "ansible.builtin.uri": {
                        "url": f"http://127.0.0.1:{api.http_port}{path}",
                        "status_code": [200] if api.health_path else [200, 204, 301, 302, 307, 401, 403, 404],
                        "timeout": 10,
                    },
                    "register": "answer",
                    "retries": 60,
                    "delay": 2,
                    "until": "answer.status > 0",
                },
            )
        )
    last = Step(
        "Also after a failure, with its volumes.",
        _shell(
            "the stack is removed",
            "docker compose --ansi never --progress plain down --volumes --remove-orphans",
            folder,
        ),
    )
    return _render_playbook(f"{survey.name} starts", f"Starts the stack of {compose.name} from nothing.", steps, [last])


def draft_checks(survey: Survey) -> str:
    """The playbook that runs the commands by which the repository checks itself."""
    steps = []
    packages = sorted({one for toolchain in survey.toolchains for one in toolchain.packages})
    if packages:
        named = ", ".join(toolchain.reason for toolchain in survey.toolchains)
        apt = {"name": packages, "state": "present", "update_cache": True}
        steps.append(
            Step(
                f"{named}: the image has none of these.",
                {"name": "tools are installed", "ansible.builtin.apt": apt, "become": True},
            )
        )
    for toolchain in survey.toolchains:
        if toolchain.install:
            task = _shell(
                f"dependencies of {toolchain.language} are installed", toolchain.install, TARGET, timeout=_BUILD
            )
            steps.append(Step(f"{toolchain.reason} names them.", task))
    activate = next((toolchain.activate for toolchain in survey.toolchains if toolchain.activate), "")
    names = {"static": "static checks pass", "unit": "tests pass"}
    for command in survey.commands:
        task = _shell(names[command.kind], activate + command.line, TARGET, timeout=_BUILD, changed_when=False)
        steps.append(Step(f"{command.reason}.", task))
    head = "Runs the commands by which this repository checks itself, in the VM and not in a container."
    if survey.setup:
        head += (
            f"\n{survey.devcontainer} runs after its creation: {survey.setup}\nAdd it as a task if the commands"
            " need it."
        )
    return _render_playbook(f"Checks of {survey.name}", head, steps, [])


def _copies_env_file(survey: Survey, compose: ComposeFile) -> bool:
    return compose.needs_env_file or bool(survey.env_example)


def _create_external(kind: str, name: str, folder: str) -> dict[str, Any]:
    line = f"docker {kind} inspect {name} >/dev/null 2>&1 || docker {kind} create {name}"
    return _shell(f"{kind} {name} exists", line, folder)


def _shell(name: str, line: str, folder: str, **keywords: Any) -> dict[str, Any]:
    return {"name": name, "ansible.builtin.shell": {"cmd": line, "chdir": folder}, **keywords}


def _render_playbook(name: str, head: str, steps: Sequence[Step], always: Sequence[Step]) -> str:
    lines = [
        *comment(f"Written by `ktrdr-vm init`; edit it.\n{head}"),
        *dump([{"name": name, "hosts": "all", "gather_facts": False}]).split("\n"),
    ]
    if always:
        lines += ["  tasks:", *indent([*dump([{"name": "the system works"}]).split("\n"), "  block:"], 4)]
        lines += [*indent(_render_steps(steps), 8), *indent(["  always:"], 4), *indent(_render_steps(always), 8)]
    else:
        lines += ["  tasks:", *indent(_render_steps(steps), 4)]
    return "\n".join(lines) + "\n"


def _render_steps(steps: Sequence[Step]) -> list[str]:
    return [line for step in steps for line in (*comment(step.reason), *dump([step.task]).split("\n"))]


def _describe_services(compose: ComposeFile) -> str:
    started = f"{len(compose.services)} services: {', '.join(one.name for one in compose.services)}."
    if not compose.in_profiles:
        return started
    return f"{started} Not started, because of their profiles: {', '.join(compose.in_profiles)}."
