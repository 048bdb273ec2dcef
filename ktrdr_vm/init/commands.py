"""The commands by which a repository checks itself, and what they need: from its Makefile, its manifests and its CI."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ktrdr_vm.init.files import Files

Kind = Literal["static", "unit"]
_MAKEFILES = ("GNUmakefile", "makefile", "Makefile")
# Rules of one target or several, with one colon or two; `:=` and `::=` assign a variable.
_RULE = re.compile(r"^([A-Za-z0-9_.-]+(?:[ \t]+[A-Za-z0-9_.-]+)*)[ \t]*::?(?!:*=)", re.MULTILINE)
_TARGETS: dict[Kind, tuple[str, ...]] = {
    "static": ("lint", "static", "check-style"),
    "unit": ("unit", "test", "tests", "check"),
}
_CI = re.compile(
    r"(\.github|\.forgejo|\.gitea)/workflows/[^/]+\.ya?ml|\.gitlab-ci\.ya?ml|\.circleci/config\.ya?ml|\.travis\.yml"
)
_TESTS = re.compile(
    r"((python3? -m )?(pytest|tox|nox|unittest)|(npm|pnpm|yarn) (run )?test|make (test|tests|unit|check)|go test|cargo"
    r" test)(?=\s|$)"
)
_LINTS = re.compile(r"(ruff|flake8|mypy|pylint|(npm|pnpm|yarn) run lint|make lint|cargo clippy|go vet)(?=\s|$)")
_MANIFEST = re.compile(r"pyproject\.toml|setup\.(cfg|py)|requirements[A-Za-z0-9._-]*\.txt|Pipfile")
# Words of a shell that would need more than the line that is read.
_SIMPLE = re.compile(r"[A-Za-z0-9 ./_=:,'\"-]{1,200}")


@dataclass(frozen=True)
class Command:
    """A command line for the top of the repository, with the file that shows it."""

    kind: Kind
    line: str
    reason: str


@dataclass(frozen=True)
class Toolchain:
    """What the commands of one language need: packages of Debian, a preset of egress, and a command that installs
    dependencies."""

    language: str
    reason: str
    packages: tuple[str, ...]
    install: str = ""
    activate: str = ""
    preset: str = ""


def find_commands(files: Files) -> tuple[Command, ...]:
    """At most one command of each kind: a target of the Makefile before a script of package.json, a tool of Python, a
    line of CI."""
    found: dict[Kind, Command] = {}
    for one in (
        *_read_makefile(files),
        *_read_package(files),
        *_read_python(files),
        *_read_manifests(files),
        *_read_ci(files),
    ):
        found.setdefault(one.kind, one)
    kinds: tuple[Kind, ...] = ("static", "unit")
    return tuple(found[kind] for kind in kinds if kind in found)


def find_toolchains(files: Files) -> tuple[Toolchain, ...]:
    """The languages of the repository that the image has no tools for."""
    found = [_find_python(files), _find_node(files)]
    if name := files.find("go.mod"):
        found.append(Toolchain("go", name, ("golang-go",)))
    if name := files.find("Cargo.toml"):
        found.append(Toolchain("rust", name, ("cargo",)))
    return tuple(one for one in found if one is not None)


def _read_makefile(files: Files) -> Iterator[Command]:
    name = files.find(*_MAKEFILES)
    targets = {one for rule in _RULE.findall(files.read(name)) for one in rule.split()} if name else set()
    for kind, candidates in _TARGETS.items():
        if target := next((one for one in candidates if one in targets), ""):
            yield Command(kind, f"make {target}", f"{name} has the target {target}")


def _read_json(files: Files, name: str) -> dict[str, Any]:
    try:
        data = json.loads(files.read(name) or "{}")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_toml(files: Files, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read(name))
    except (ValueError, RecursionError):
        return {}


def _find_client(files: Files) -> tuple[str, str]:
    """The client of Node packages that the lock file belongs to, and the name of that file."""
    locks = {
        "pnpm-lock.yaml": "npx --yes pnpm",
        "yarn.lock": "npx --yes yarn",
        "package-lock.json": "npm",
        "npm-shrinkwrap.json": "npm",
    }
    return next(((client, name) for name, client in locks.items() if files.has(name)), ("npm", ""))


def _read_package(files: Files) -> Iterator[Command]:
    scripts = _read_json(files, "package.json").get("scripts")
    client, _ = _find_client(files)
    kinds: dict[str, Kind] = {"lint": "static", "test": "unit"}
    for script, kind in kinds.items():
        line = scripts.get(script) if isinstance(scripts, dict) else None
        if isinstance(line, str) and line.strip() and "no test specified" not in line:
            yield Command(kind, f"{client} run {script}", f"package.json has the script {script}")


def _read_python(files: Files) -> Iterator[Command]:
    tools = _read_toml(files, "pyproject.toml").get("tool")
    tools = tools if isinstance(tools, dict) else {}
    prefix = _prefix(files)
    if "ruff" in tools or files.find("ruff.toml", ".ruff.toml"):
        yield Command("static", f"{prefix}ruff check .", "the configuration of ruff")
    if name := files.find("tox.ini"):
        yield Command("unit", "tox", f"{name} exists")
    if "pytest" in tools or files.find("pytest.ini", "conftest.py", "tests/conftest.py"):
        yield Command("unit", f"{prefix}pytest", "the configuration of pytest")
    manifest = next((name for name in files.names if _MANIFEST.fullmatch(name) and "pytest" in files.read(name)), "")
    if manifest and any(re.fullmatch(r"tests?/(.*/)?test_[^/]+\.py", name) for name in files.names):
        yield Command("unit", f"{prefix}pytest", f"{manifest} names pytest, and there are files for it")


def _prefix(files: Files) -> str:
    return "uv run " if files.has("uv.lock") else "poetry run " if files.has("poetry.lock") else ""


def _read_manifests(files: Files) -> Iterator[Command]:
    if files.has("go.mod"):
        yield Command("static", "go vet ./...", "go.mod exists")
        yield Command("unit", "go test ./...", "go.mod exists")
    if files.has("Cargo.toml"):
        yield Command("unit", "cargo test", "Cargo.toml exists")


def _read_ci(files: Files) -> Iterator[Command]:
    for name in (one for one in files.names if _CI.fullmatch(one)):
        for raw in files.read(name).splitlines()[:2000]:
            line = re.sub(r"^\s*(- )?((run|script|command):\s*)?(- )?", "", raw).strip().strip("\"'")
            if not _SIMPLE.fullmatch(line):
                continue
            if _LINTS.match(line):
                yield Command("static", line, f"{name} runs it")
            if _TESTS.match(line):
                yield Command("unit", line, f"{name} runs it")


def _find_python(files: Files) -> Toolchain | None:
    """A virtual environment with what the lock file or the manifest names."""
    packages = ("python3-pip", "python3-venv")
    venv, activate = "python3 -m venv /tmp/checks && . /tmp/checks/bin/activate", ". /tmp/checks/bin/activate && "
    pip = f"{venv} && pip install --quiet"
    if name := files.find("uv.lock"):
        return Toolchain("python", name, packages, f"{pip} uv && uv sync --all-extras", activate, "python")
    if name := files.find("poetry.lock"):
        return Toolchain("python", name, packages, f"{pip} poetry && poetry install --all-extras", activate, "python")
    tools = sorted(
        {
            line.split()[0]
            for one in (*_read_python(files), *_read_ci(files))
            if (line := one.line) and line.split()[0] in _PIP_TOOLS
        }
    )
    wanted = [
        f"-r {name}"
        for name in ("requirements.txt", "requirements-dev.txt", "requirements-test.txt")
        if files.has(name)
    ]
    project = _read_toml(files, "pyproject.toml").get("project")
    if isinstance(project, dict):
        extras = project.get("optional-dependencies")
        chosen = [one for one in ("dev", "test", "tests") if isinstance(extras, dict) and one in extras]
        wanted.append(f"-e '.[{','.join(chosen)}]'" if chosen else "-e .")
    groups = _read_toml(files, "pyproject.toml").get("dependency-groups")
    wanted += [f"--group {one}" for one in ("dev", "test", "tests") if isinstance(groups, dict) and one in groups]
    if not isinstance(project, dict) and files.has("setup.py"):
        wanted.append("-e .")
    if not wanted and not tools:
        return None
    name = (
        files.find("pyproject.toml", "setup.py", "requirements.txt", "requirements-dev.txt")
        or f"The command {tools[0]}"
    )
    return Toolchain("python", name, packages, " ".join([pip, *wanted, *tools]), activate, "python")


_PIP_TOOLS = {"pytest", "tox", "nox", "ruff", "mypy", "flake8", "pylint"}


def _find_node(files: Files) -> Toolchain | None:
    if not files.has("package.json"):
        return None
    client, lock = _find_client(files)
    install = {"npm": "npm ci" if lock else "npm install"}.get(client, f"{client} install --frozen-lockfile")
    return Toolchain("node", lock or "package.json", ("nodejs", "npm"), install, preset="node")
