"""What `init` makes of single files of a repository."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktrdr_vm.init.compose import parse_compose
from ktrdr_vm.init.draft import Answers, draft_documents
from ktrdr_vm.init.files import MAX_BYTES
from ktrdr_vm.init.survey import survey_repository

CLIENTS = ("apt-get", "pip", "npm")


def draft(
    top: Path, files: dict[str, str], answers: Answers | None = None, clients: tuple[str, ...] = CLIENTS
) -> dict[str, str]:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return draft_documents(survey_repository(top), answers or Answers(), clients)


def read_profile(documents: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(documents["ktrdr.yaml"])
    return found


STACK = """\
services:
  api:
    build: .
    image: shop-api
    ports: ["${API_PORT:-8080}:80"]
    healthcheck: {test: [CMD, curl, -f, "http://localhost:80/healthz"]}
  migrate: {image: shop-api}
  db: {image: "postgres:16"}
  worker: {image: "ghcr.io/acme/worker:1"}
"""


def test_an_api_with_a_database_uses_the_shipped_gate(tmp_path: Path) -> None:
    documents = draft(tmp_path, {"compose.yaml": STACK})
    profile = read_profile(documents)
    assert documents.keys() == {"ktrdr.yaml"}
    assert profile["gates"] == ["startability", "isolation"]
    assert profile["vars"] == {
        "project_src": "/workspace", "api_url": "http://127.0.0.1:8080", "health_path": "/healthz", "database_service": "db",
    }  # fmt: skip
    # An image that a service builds is not pulled.
    assert profile["egress"]["allow"] == [{"preset": "debian"}, {"preset": "docker-hub"}, {"preset": "ghcr"}]
    assert "shop-api" not in documents["ktrdr.yaml"]


@pytest.mark.parametrize(
    "name", ["compose.yml", "docker-compose.yaml", "docker-compose.dev.yml", "deploy/compose.prod.yaml"]
)
def test_a_compose_file_is_found_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    documents = draft(tmp_path, {name: "services: {worker: {image: redis}}\n"})
    profile = read_profile(documents)
    assert profile["gates"] == ["starts", "isolation"]
    own = name.rsplit("/", 1)[-1]
    assert profile.get("environment") == (
        None if own in ("compose.yml", "docker-compose.yaml") else {"COMPOSE_FILE": own}
    )
    folder = f"/workspace/{name.rpartition('/')[0]}".rstrip("/")
    [play] = yaml.safe_load(documents["playbooks/starts.yaml"])
    assert {task["ansible.builtin.shell"]["chdir"] for task in play["tasks"][0]["block"]} == {folder}


def test_the_main_file_comes_before_its_overrides_and_a_person_decides(tmp_path: Path) -> None:
    files = dict.fromkeys(
        ("compose.override.yaml", "docker-compose.yml", "dev/compose.yaml"), "services: {a: {image: redis}}\n"
    )
    documents = draft(tmp_path, files)
    assert [one.name for one in survey_repository(tmp_path).composes] == [
        "docker-compose.yml",
        "dev/compose.yaml",
        "compose.override.yaml",
    ]
    assert "docker-compose.yml" in documents["playbooks/starts.yaml"]
    assert "dev/compose.yaml" in draft(tmp_path, {}, Answers(compose="dev/compose.yaml"))["playbooks/starts.yaml"]


def test_an_environment_file_is_copied_and_its_secrets_are_suggested(tmp_path: Path) -> None:
    stack = STACK.replace("    build: .\n", "    build: .\n    env_file: .env\n")
    documents = draft(tmp_path, {"compose.yaml": stack, ".env.example": "PORT=1\nexport STRIPE_API_KEY=\n"})
    assert "test -e .env || cp /workspace/.env.example .env" in documents["playbooks/starts.yaml"]
    assert "# - {name: stripe_api_key, source: {env: KTRDR_STRIPE_API_KEY}}" in documents["ktrdr.yaml"]
    assert "secrets" not in read_profile(documents)


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        ({"Makefile": "lint:\n\tx\ntest:\n\ty\n", "package.json": '{"scripts": {"test": "x"}}'}, ["npm install", "make lint", "make test"]),
        ({"Makefile": "lint test: deps\n\tx\n"}, ["make lint", "make test"]),
        ({"Makefile": "lint:: deps\n\tx\nunit := a\ncheck ::= b\ntests :::= c\n"}, ["make lint"]),
        ({"package.json": '{"scripts": {"test": "vitest"}}', "package-lock.json": "{}"}, ["npm ci", "npm run test"]),
        ({"package.json": '{"scripts": {"test": "vitest"}}', "pnpm-lock.yaml": ""}, ["npx --yes pnpm install --frozen-lockfile", "npx --yes pnpm run test"]),
        ({"pyproject.toml": "[tool.pytest.ini_options]\n", "uv.lock": ""}, ["uv sync --all-extras", "uv run pytest"]),
        ({"requirements.txt": "pytest\n", "tests/test_a.py": ""}, ["-r requirements.txt", "pytest"]),
        ({"pyproject.toml": "[project]\nname='x'\n[project.optional-dependencies]\ndev=[]\n[tool.ruff]\n"}, ["-e '.[dev]' ruff", "ruff check ."]),
        ({"go.mod": "module x\n"}, ["go vet ./...", "go test ./..."]),
        ({".github/workflows/ci.yml": "jobs:\n  pytest:\n    steps:\n    - run: tox -e py\n"}, ["pip install --quiet tox", "tox -e py"]),
        ({".gitlab-ci.yml": "test:\n  script:\n    - make unit\n"}, ["make unit"]),
    ],
)  # fmt: skip
def test_the_commands_of_a_project(tmp_path: Path, files: dict[str, str], lines: list[str]) -> None:
    documents = draft(tmp_path, files)
    [play] = yaml.safe_load(documents["playbooks/checks.yaml"])
    shown = [task["ansible.builtin.shell"]["cmd"] for task in play["tasks"] if "ansible.builtin.shell" in task]
    assert len(shown) == len(lines) and all(line in said for line, said in zip(lines, shown, strict=True)), shown
    assert "checks" in read_profile(documents)["gates"]


def test_without_anything_known_only_isolation_runs(tmp_path: Path) -> None:
    documents = draft(
        tmp_path, {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'}
    )
    assert read_profile(documents)["gates"] == ["isolation"] and "# - checks" in documents["ktrdr.yaml"]


def test_a_preset_whose_client_is_not_on_this_host_is_a_suggestion(tmp_path: Path) -> None:
    documents = draft(tmp_path, {"package.json": "{}", "package-lock.json": "{}"}, clients=("apt-get",))
    assert (
        read_profile(documents)["egress"]["allow"] == [{"preset": "debian"}]
        and "# - {preset: node}" in documents["ktrdr.yaml"]
    )


def test_the_agents_command_is_a_workload(tmp_path: Path) -> None:
    profile = read_profile(draft(tmp_path, {}, Answers(agent=("claude", "-p", "fix: it"))))
    assert profile["workload"] == {"command": ["claude", "-p", "fix: it"], "timeout": "2h"}


def test_a_registry_with_a_port_is_a_host_and_an_address_a_suggestion(tmp_path: Path) -> None:
    files = {
        "Dockerfile": "FROM registry.acme.io:5000/base:1 AS build\nFROM build\nFROM scratch\n",
        "b.Dockerfile": "FROM 10.0.0.1:5000/x\n",
    }
    documents = draft(tmp_path, files)
    assert read_profile(documents)["egress"]["allow"] == [
        {"preset": "debian"},
        {"host": "registry.acme.io", "ports": [5000]},
    ]
    assert "# - {host: 10.0.0.1, ports: [5000]}" in documents["ktrdr.yaml"]


EXTERNAL = """\
networks:
  monitoring: {external: true, name: "${PREFIX:-shop}-monitoring"}
  default: {}
volumes:
  data: {external: true}
  older: {external: {name: old-data}}
  bad: {external: true, name: "a; rm -rf /"}
"""


def test_external_networks_and_volumes_are_created_before_the_containers(tmp_path: Path) -> None:
    documents = draft(tmp_path, {"compose.yaml": STACK + EXTERNAL, ".env.example": "PREFIX=own\n"})
    [play] = yaml.safe_load(documents["playbooks/starts.yaml"])
    names = [task["name"] for task in play["tasks"][0]["block"]]
    made = ["network own-monitoring exists", "volume data exists", "volume old-data exists"]
    assert [name for name in names if name.endswith(" exists") and name != "the environment file exists"] == made
    assert names.index(made[-1]) < names.index("containers build and start")


def test_external_networks_and_volumes_are_variables_of_the_shipped_gate(tmp_path: Path) -> None:
    profile = read_profile(draft(tmp_path, {"compose.yaml": STACK + EXTERNAL}))
    assert profile["gates"] == ["startability", "isolation"]
    assert profile["vars"]["external_networks"] == "shop-monitoring"
    assert profile["vars"]["external_volumes"] == "data old-data"


@pytest.mark.parametrize(
    ("port", "example", "found"),
    [
        ("${API_PORT:?copy .env.example}", "API_PORT=8081\n", 8081),
        ("${API_PORT}", "export API_PORT = '8082' # of the API\n", 8082),
        ("$API_PORT", "API_PORT=8083", 8083),
        ("${API_PORT:-8084}", "API_PORT=\n", 8084),
        ("${API_PORT:-8084}", "OTHER=1\n", 8084),
        ("${API_PORT}", "OTHER=1\n", 0),
    ],
)
def test_variables_of_a_compose_file_have_the_values_of_the_example(
    tmp_path: Path, port: str, example: str, found: int
) -> None:
    (tmp_path / ".env.example").write_text(example)
    (tmp_path / "compose.yaml").write_text(STACK.replace("${API_PORT:-8080}", port))
    [compose] = survey_repository(tmp_path).composes
    assert compose.services[0].http_port == found


def test_a_remote_is_shown_without_its_credentials(tmp_path: Path) -> None:
    text = draft(tmp_path, {".git/config": '[remote "o"]\n\turl = https://me:s3cret@github.com/a/b\n'})["ktrdr.yaml"]
    assert "# - {preset: github}" in text and "s3cret" not in text


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "compose.yaml").write_text(STACK)
    top = tmp_path / "top"
    top.mkdir()
    (top / "compose.yaml").symlink_to(outside / "compose.yaml")
    (top / "linked").symlink_to(outside)
    assert survey_repository(top).composes == ()


@pytest.mark.parametrize(
    "text", ["", "- a\n", "services: []\n", "a: {b\n", "services: {a: 3}\n", "a: &a [*a]\nservices: *a\n"]
)
def test_what_is_no_compose_file_is_none_or_has_no_facts(text: str) -> None:
    found = parse_compose("compose.yaml", text, {})
    assert found is None or [(one.image, one.ports) for one in found.services] == [("", ())]


@pytest.mark.parametrize(
    "beginning", ["\n", " ", "\t\n", "FROM ", "FROM --a ", "url=", '"', '\\"', "/*", '/*"', ",\n", "a\n"]
)
def test_files_that_are_made_to_take_time_take_none(tmp_path: Path, beginning: str) -> None:
    """A file of the largest size with nothing but blank lines took minutes, with nothing but beginnings of comments 16 s."""
    text = (beginning * MAX_BYTES)[:MAX_BYTES]
    for name in (
        ".env.example",
        "Dockerfile",
        ".devcontainer/devcontainer.json",
        ".git/config",
        "Makefile",
        "compose.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    began = time.process_time()
    survey_repository(tmp_path)
    assert time.process_time() - began < 10


def test_a_devcontainer_is_read_without_its_comments(tmp_path: Path) -> None:
    (tmp_path / ".devcontainer.json").write_text(
        '{/* a * b **/ "postCreateCommand": "make /* this */ // \\"all\\"", // and this\n "x": [1, ], /* no end'
    )
    assert survey_repository(tmp_path).setup == ""
    (tmp_path / ".devcontainer.json").write_text(
        '{/* a * b **/ "postCreateCommand": "make /* this */ // \\"all\\"", // and this\n "x": [1, ], }'
    )
    assert survey_repository(tmp_path).setup == 'make /* this */ // "all"'


def test_services_with_profiles_are_named_and_not_started() -> None:
    text = "services:\n  web: {image: nginx}\n  e2e: {image: x.example/e2e, profiles: [test]}\n"
    found = parse_compose("compose.yaml", text, {})
    assert found is not None and found.images == ("nginx",)
    assert ([one.name for one in found.services], found.in_profiles) == (["web"], ("e2e",))
    # A file whose services all have profiles is a compose file nevertheless.
    found = parse_compose("compose.yaml", "services:\n  e2e: {image: nginx, profiles: [test]}\n", {})
    assert found is not None and [one.name for one in found.services] == ["e2e"]


def test_compose_files_of_other_folders_are_named(tmp_path: Path) -> None:
    files = {f"{folder}/compose.yaml": "services: {web: {image: nginx}}\n" for folder in ("a", "b")}
    text = " ".join(draft(tmp_path, files)["ktrdr.yaml"].replace("#", " ").split())
    assert "a/compose.yaml: playbooks/starts.yaml of this repository. CHANGE: other" in text
    assert "compose files are not started: b/compose.yaml." in text


def test_any_dockerfile_names_its_registries(tmp_path: Path) -> None:
    """Without the names of its own stages, and whatever the file is called."""
    files = {
        "Dockerfile.dev": "FROM ghcr.io/a/b:1 AS base\nFROM base\n",
        "docker/api.Dockerfile": "from --platform=linux/amd64 quay.io/c/d\nFROM scratch\n",
    }
    allowed = read_profile(draft(tmp_path, files))["egress"]["allow"]
    assert [one.get("preset") for one in allowed] == ["debian", "ghcr", "quay"]
