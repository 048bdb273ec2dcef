"""The documents that follow from a survey: `ktrdr.yaml` and the playbooks that it names. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ktrdr_vm.init.compose import DEFAULT_NAMES, ComposeFile
from ktrdr_vm.init.document import Entry, render_document
from ktrdr_vm.init.gates import TARGET, draft_checks, draft_starts, uses_shipped_gate
from ktrdr_vm.init.survey import Survey
from ktrdr_vm.profile.scalars import parse_host

PROFILE = "ktrdr.yaml"
_HEAD = """\
Written by `ktrdr-vm init` from the files of this repository. A comment gives the reason for the line below.
Lines that begin with `# ` and a key are suggestions: complete them and remove the `# `.
`ktrdr-vm plan` shows what this profile creates, and `ktrdr-vm apply` runs it."""
# Presets of the registries, by the host in the name of an image.
_REGISTRIES = {
    "docker.io": "docker-hub",
    "ghcr.io": "ghcr",
    "quay.io": "quay",
    "registry.gitlab.com": "gitlab-registry",
}
_FORGES = {"github.com": "github", "gitlab.com": "gitlab"}
# Images that no registry has: that of the recipe.
_LOCAL = re.compile(r"ktrdr-base(:.*)?")


@dataclass(frozen=True)
class Answers:
    """What a person decided: the compose file by its name, and the words of the agent's command. Empty: undecided."""

    compose: str = ""
    agent: tuple[str, ...] = ()


def draft_documents(survey: Survey, answers: Answers, clients: Collection[str]) -> dict[str, str]:
    """The text of each document by its name in the repository; always a valid profile and valid playbooks.

    `clients` are the package clients of this host (`apt-get`, `pip`, `npm`), whose configuration presets are read from.
    """
    compose = next((one for one in survey.composes if one.name == answers.compose), next(iter(survey.composes), None))
    documents = {PROFILE: render_document(_HEAD, list(_draft_profile(survey, compose, answers, clients)))}
    if compose is not None and not uses_shipped_gate(survey, compose):
        documents["playbooks/starts.yaml"] = draft_starts(survey, compose)
    if survey.commands:
        documents["playbooks/checks.yaml"] = draft_checks(survey)
    return documents


def _draft_profile(
    survey: Survey, compose: ComposeFile | None, answers: Answers, clients: Collection[str]
) -> Iterator[Entry]:
    yield Entry("version", 1, "The version of the profile format.")
    yield Entry("name", survey.name, "The name of the folder of this repository.")
    yield Entry(
        "mode", "sandbox", "The VM is destroyed after each run; `interactive` keeps it until `ktrdr-vm destroy`."
    )
    why = f", for {compose.name}" if compose else ""
    yield Entry(
        "image", "debian-13-docker", f"The shipped image: Debian 13 with Docker, Compose, Git, make and Python{why}."
    )
    services = len(compose.services) if compose else 0
    memory = "2GiB" if services <= 2 else "4GiB" if services <= 6 else "8GiB"
    sized = f"{services} services in {compose.name}" if compose else "No compose file was found"
    yield Entry(
        "resources",
        {"vcpus": 2, "memory": memory, "disk": "20GiB"},
        f"{sized}. CHANGE: the report of a run shows how much was used.",
    )
    yield Entry(
        "workspace", {"source": ".", "target": TARGET}, "This repository is copied in, with changes of tracked files."
    )
    yield Entry(
        "egress",
        reason="All other destinations are denied and recorded.",
        inner=(Entry("allow", inner=tuple(_draft_egress(survey, clients))),),
    )
    yield from _draft_secrets(survey)
    if compose and compose.name.rsplit("/", 1)[-1] not in DEFAULT_NAMES:
        name = compose.name.rsplit("/", 1)[-1]
        yield Entry("environment", {"COMPOSE_FILE": name}, f"Compose does not search for {name} itself.")
    yield _draft_workload(answers)
    gates = list(_draft_gates(survey, compose))
    yield Entry("gates", reason="Run in this order; the rest is skipped when one fails.", inner=tuple(gates))
    if compose and (entry := _draft_variables(survey, compose)):
        yield entry
    yield Entry(
        "artifacts",
        ["/workspace/test-results"],
        "Put files or folders that the gates or the agent write.",
        active=False,
    )


def _draft_egress(survey: Survey, clients: Collection[str]) -> Iterator[Entry]:
    yield _make_preset(
        "debian", "apt-get", "The gate `isolation` reads a package source, and tools are installed from it", clients
    )
    programs = {"python": "pip", "node": "npm"}
    for toolchain in survey.toolchains:
        if toolchain.preset:
            yield _make_preset(
                toolchain.preset, programs[toolchain.preset], f"{toolchain.reason} names packages", clients
            )
        else:
            yield Entry(
                "", {"host": "CHANGE"}, f"{toolchain.reason}: put the host that packages come from.", active=False
            )
    presets: dict[str, Entry] = {}
    for image, source in survey.images:
        if not _LOCAL.fullmatch(image):
            entry = _draft_registry(image, source)
            presets.setdefault(repr(entry.value), entry)
    yield from presets.values()
    for host in survey.remotes:
        reason = (
            f"The remote of this repository is at {host}. Commits are brought back without it: only if the agent itself"
            " fetches or pushes."
        )
        yield Entry("", {"preset": _FORGES[host]} if host in _FORGES else {"host": host}, reason, active=False)
    yield Entry(
        "",
        {"host": "api.example.com"},
        "Put the host of the API of the agent's model, if there is a workload.",
        active=False,
    )


def _make_preset(preset: str, program: str, why: str, clients: Collection[str]) -> Entry:
    if program in clients:
        return Entry(
            "", {"preset": preset}, f"{why}; the hosts are those that {program} of this host is configured for."
        )
    missing = (
        f"{why}. The preset is read from the configuration of {program}, which is not installed on this host: install"
        " it, or put hosts."
    )
    return Entry("", {"preset": preset}, missing, active=False)


def _draft_registry(image: str, source: str) -> Entry:
    first, slash, _ = image.partition("/")
    registry = first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"
    if registry in _REGISTRIES:
        return Entry("", {"preset": _REGISTRIES[registry]}, f"{source} pulls {image}.")
    host, _, port = registry.partition(":")
    value: dict[str, object] = {"host": host.lower()}
    if re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536:
        value["ports"] = [int(port)]
    try:
        parse_host(host.lower())
    except ValueError:
        return Entry("", value, f"{source} pulls {image}; put the name of that registry.", active=False)
    return Entry("", value, f"{source} pulls {image}.")


def _draft_secrets(survey: Survey) -> Iterator[Entry]:
    """Suggestions only: which values have to be real is not known."""
    entries = [
        Entry(
            "",
            {"name": name.lower().strip("_"), "source": {"env": f"KTRDR_{name.upper()}"}},
            f"{survey.env_example} names {name}.",
            active=False,
        )
        for name in survey.secrets
    ] or [
        Entry(
            "",
            {"name": "model_key", "source": {"env": "KTRDR_MODEL_KEY"}, "ttl": "2h"},
            "Put the key of the agent's model.",
            active=False,
        )
    ]
    reason = (
        "Each is read from a variable of the shell that calls `apply`, and written to /run/secrets in the VM until its"
        " expiry."
    )
    yield Entry("secrets", reason=reason, inner=tuple(entries))


def _draft_workload(answers: Answers) -> Entry:
    reason = "The coding agent. It runs after the first gate; its commits are checked by all gates in a fresh VM."
    if answers.agent:
        return Entry("workload", {"command": list(answers.agent), "timeout": "2h"}, reason)
    return Entry("workload", {"command": ["CHANGE"], "timeout": "2h"}, f"{reason} Put its command.", active=False)


def _draft_gates(survey: Survey, compose: ComposeFile | None) -> Iterator[Entry]:
    if compose is not None:
        if uses_shipped_gate(survey, compose):
            yield Entry(
                "",
                "startability",
                f"{compose.name} has an API and a database: the shipped gate, with the variables below.",
            )
        else:
            others = [one.name for one in survey.composes if one is not compose and one.folder != compose.folder]
            note = f" CHANGE: other compose files are not started: {', '.join(others)}." if others else ""
            yield Entry("", "starts", f"{compose.name}: playbooks/starts.yaml of this repository.{note}")
    if survey.commands:
        shown = " and ".join(f"`{one.line}`" for one in survey.commands)
        yield Entry("", "checks", f"playbooks/checks.yaml of this repository: {shown}.")
    else:
        yield Entry(
            "", "checks", "No command was found that checks the code: write playbooks/checks.yaml.", active=False
        )
    yield Entry("", "isolation", "The shipped gate that tests from inside that only the destinations above are open.")


def _draft_variables(survey: Survey, compose: ComposeFile) -> Entry | None:
    """Variables of the shipped gate; None if a playbook of the repository contains its own."""
    api, database = compose.api, compose.database
    if not uses_shipped_gate(survey, compose) or api is None or database is None:
        return None
    external = {"external_networks": compose.external_networks, "external_volumes": compose.external_volumes}
    return Entry(
        "vars",
        reason="Variables of the shipped gates.",
        inner=(
            Entry("project_src", f"{TARGET}/{compose.folder}".rstrip("/"), f"The folder of {compose.name}."),
            Entry("api_url", f"http://127.0.0.1:{api.http_port}", f"{api.name} publishes this port."),
            Entry("health_path", api.health_path, f"The health check of {api.name} uses it."),
            Entry("database_service", database.name, f"It runs {database.image}."),
            *(
                Entry(key, " ".join(names), f"{compose.name} declares them as external: they are created.")
                for key, names in external.items()
                if names
            ),
        ),
    )
