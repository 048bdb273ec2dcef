"""Of any repository, `init` writes a profile that `validate` accepts, and playbooks that parse."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.init.draft import Answers, draft_documents
from ktrdr_vm.init.survey import survey_repository
from ktrdr_vm.inputs.references import check_places, check_references
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy

CLIENTS = ("apt-get", "pip", "npm")
WORDS = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    [
        "api",
        "db",
        "postgres:16",
        "ghcr.io/acme/x:1",
        "registry.acme.io:5000/y@sha256:0",
        "10.0.0.1:5000/z",
        "${IMAGE:-redis}",
        "8000:80",
        "a{{ b }}",
    ]
)
SCALARS = WORDS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)
SERVICE = st.fixed_dictionaries(
    {},
    optional={
        "image": WORDS,
        "build": VALUES,
        "ports": st.lists(
            st.sampled_from(["8000:80", "127.0.0.1:5432:5432", "${PORT:-3000}:3000", {"published": 81}, 9, "x"])
            | VALUES,
            max_size=3,
        ),
        "env_file": st.sampled_from([".env", [".env", {"path": "a", "required": False}]]) | VALUES,
        "healthcheck": st.fixed_dictionaries(
            {}, optional={"test": st.sampled_from(["curl http://localhost:80/health", ["CMD", "x"]]) | VALUES}
        ),
    },
)
COMPOSE = st.fixed_dictionaries({"services": st.dictionaries(WORDS, SERVICE | VALUES, max_size=5)}) | VALUES
ANY = st.text(st.characters(codec="utf-8"), max_size=200)
MAKEFILES = st.sampled_from(["lint:\n\truff .\ntest: lint\n", "unit ::\n", "VAR := x\n"]) | ANY
PACKAGES = st.fixed_dictionaries(
    {}, optional={"scripts": st.dictionaries(st.sampled_from(["test", "lint", "x"]), VALUES, max_size=3) | VALUES}
)
PROJECTS = st.sampled_from(
    [
        "[project]\nname='x'\n[project.optional-dependencies]\ndev=[]\n[tool.pytest.ini_options]\n",
        "[tool.ruff]\n[dependency-groups]\ntest=['pytest']\n",
        "[project]\noptional-dependencies=3\n",
    ]
)
WORKFLOWS = (
    st.sampled_from(
        [
            "jobs:\n  test:\n    steps:\n    - run: pytest -q\n    - run: npm test\n",
            "script:\n  - make lint\n  - go test ./...\n",
        ]
    )
    | ANY
)
EXAMPLES = st.lists(
    st.sampled_from(["API_KEY=", "export DB_PASSWORD=x", "PORT=1", "__TOKEN=", "é=1"]) | WORDS, max_size=5
).map("\n".join)
DOCKERFILES = st.lists(WORDS.map(lambda word: f"FROM {word} AS build"), max_size=3).map("\n".join)
JSON_OR_TEXT = VALUES.map(json.dumps) | ANY
FILES: dict[str, st.SearchStrategy[str]] = {
    **{
        name: COMPOSE.map(yaml.safe_dump) | ANY
        for name in ("compose.yaml", "docker-compose.yml", "deploy/compose.prod.yml")
    },
    "Makefile": MAKEFILES,
    "package.json": PACKAGES.map(json.dumps) | JSON_OR_TEXT,
    "package-lock.json": ANY,
    "pnpm-lock.yaml": ANY,
    "pyproject.toml": PROJECTS | ANY,
    "requirements.txt": st.sampled_from(["pytest\n", "flask\n"]),
    "tests/test_a.py": ANY,
    "uv.lock": ANY,
    "go.mod": ANY,
    "Cargo.toml": ANY,
    "tox.ini": ANY,
    ".env.example": EXAMPLES,
    "Dockerfile": DOCKERFILES,
    ".devcontainer/devcontainer.json": st.sampled_from(
        ['// x\n{"postCreateCommand": "npm ci && echo {{ x }}\\n\\u0007",}']
    )
    | JSON_OR_TEXT,
    ".github/workflows/ci.yml": WORKFLOWS,
    ".git/config": st.sampled_from(
        ['[remote "origin"]\n\turl = https://u:p@github.com/a/b\n', "\turl = git@10.0.0.1:x\n"]
    )
    | ANY,
}
REPOSITORIES = st.fixed_dictionaries({}, optional=FILES)
FOLDERS = st.sampled_from(["orders", "Orders (2)", "...", "münchen", "-x-", "a" * 90])
LAUGHS = "x: &x {a: 1, b: 2}\n" + "".join(
    f"x{n}: &x{n}\n  <<: [{', '.join(['*x' + (str(n - 1) if n else '')] * 50)}]\n" for n in range(9)
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    REPOSITORIES,
    FOLDERS,
    st.sets(st.sampled_from(CLIENTS)),
    st.lists(st.sampled_from(["claude", "-p", "{{ x }}", "do it: now"]), max_size=3),
)
@example({"compose.yaml": LAUGHS + "services: {a: {<<: *x8, image: b}}\n"}, "orders", set(), [])
@example({"compose.yaml": "services: {a: {image: !!bool x}}\n"}, "orders", set(), [])
@example({"compose.yaml": "services: {a: {image: !!int ''}}\n"}, "orders", set(), [])
@example({"compose.yaml": "services: {a: {image: !!timestamp x}}\n"}, "orders", set(), [])
@example({"Dockerfile": "FROM a.example.com:00000" + "9" * 150 + "/x\n"}, "orders", set(), [])
@example({"compose.yaml": "services: {a: &a {image: b}, c: {<<: *a, develop: !reset null}}\n"}, "orders", set(), [])
def test_the_profile_is_valid_and_its_playbooks_parse(
    files: dict[str, str], folder: str, clients: set[str], agent: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        top = Path(place).resolve() / folder
        for name, content in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(content, encoding="utf-8")
        top.mkdir(exist_ok=True)
        documents = draft_documents(survey_repository(top), Answers(agent=tuple(agent)), clients)
        for name, text in documents.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text, encoding="utf-8")
        loaded = read_profile(top / "ktrdr.yaml", top)
        policy = OwnerPolicy()
        problems = [
            *check_references(loaded, top),
            *check_policy(loaded, policy, str(top)),
            *check_places(loaded, top, policy.mount_roots),
        ]
        assert [str(problem) for problem in problems] == []
        for name, text in documents.items():
            if name.startswith("playbooks/"):
                parse_playbook(text, name)
        # The same files give the same documents.
        assert draft_documents(survey_repository(top), Answers(agent=tuple(agent)), clients).keys() == documents.keys()


def test_every_line_of_a_profile_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(
        "services: {api: {build: ., ports: ['8000:80']}, db: {image: 'postgres:16'}}\n"
    )
    text = draft_documents(survey_repository(tmp_path), Answers(), CLIENTS)["ktrdr.yaml"]
    lines = text.splitlines()
    containers = ("  allow:",)
    for before, line in itertools.pairwise(lines):
        if line and not line.lstrip().startswith("#") and line not in containers:
            assert before.lstrip().startswith("#"), line
