"""Parameters and results of all modules."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_vm.errors import keep_end

if TYPE_CHECKING:
    from ktrdr_vm.gates.renderer import Renderer
    from ktrdr_vm.gates.templating import Scope
    from ktrdr_vm.guest.protocol import Guest, GuestResult
    from ktrdr_vm.host.beneath import Place

Result = dict[str, Any]
"""The registered result, with the keys of Ansible: always `changed`; `failed` and `msg` if they apply."""

MAX_REGISTERED = 1024 * 1024
"""Bytes of each stream that a registered value keeps."""

NO_PYTHON = (
    "python3 in the guest, which has none in its PATH: install it in an earlier task with `shell`, or use an image"
    " that has it"
)
"""For a message; how to install it is known only to the guest's package manager."""

_TAIL = 64 * 1024
_GUEST_SIDE = Path(__file__).parent / "guest_side"
_PACKAGE = "ktrdr_vm.gates.modules.guest_side"
_MARK = "ktrdr-vm-result:"


@dataclass(frozen=True)
class Host:
    """The parts of the host that a module may use: files to send, a folder for fetched files, a clock."""

    roots: tuple[Path | Place, ...]
    artifacts: Path | None
    now: Callable[[], str]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    role: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Those of the playbook as it was loaded; see `Playbook.files`."""
    fetched: set[str] = field(default_factory=set)
    """Names of the files that the gate has fetched."""

    def find_folders(self, kind: str) -> tuple[str, ...]:
        """Folders in which a file is searched before the folder of the playbook; `kind` is `files` or `templates`."""
        return (f"roles/{self.role}/{kind}", f"roles/{self.role}", kind) if self.role else (kind,)


@dataclass(frozen=True)
class Call:
    """One call of a module, with rendered and typed options, without omitted ones."""

    module: str
    arguments: Mapping[str, Any]
    guest: Guest
    host: Host
    environment: Mapping[str, str]
    become: bool
    timeout: float
    check: bool
    registered: bool
    templar: Renderer
    scope: Scope

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name)
        return default if value is None else value

    def run(
        self, command: list[str] | str, *, stdin: bytes = b"", chdir: str | None = None, timeout: float | None = None
    ) -> GuestResult:
        """Run a command in the guest with the environment and the privileges of the task."""
        limit = self.timeout if timeout is None else min(timeout, self.timeout)
        tail = bytearray()

        def keep_tail(data: bytes) -> None:
            tail.extend(data)
            if len(tail) > 2 * _TAIL:
                del tail[:-_TAIL]

        completed = self.guest.run(
            command,
            timeout=limit,
            stdin=stdin,
            environment=self.environment,
            chdir=chdir,
            become=self.become,
            max_output=MAX_REGISTERED,
            on_output=keep_tail,
        )
        if not completed.truncated:
            return completed
        # A long build fails at its end, so the cut part would contain the reason.
        stdout = completed.stdout + b"\n[... output left out; both streams end with ...]\n" + bytes(tail[-_TAIL:])
        return replace(completed, stdout=stdout)


class ModuleFailure(Exception):
    """The module failed; `result` is registered."""

    def __init__(self, msg: str, **more: Any) -> None:
        super().__init__(msg)
        self.result: Result = {"changed": False, **more, "failed": True, "msg": msg}


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def command_result(completed: GuestResult, cmd: Any, *, changed: bool = True, strip: bool = True) -> Result:
    """rc and both streams; `strip` removes the line breaks at their ends, as Ansible does."""
    stdout, stderr = (text_of(stream) for stream in (completed.stdout, completed.stderr))
    if strip:
        stdout, stderr = stdout.rstrip("\r\n"), stderr.rstrip("\r\n")
    result = {
        "changed": changed, "cmd": cmd, "rc": completed.exit_code, "stdout": stdout, "stderr": stderr,
        "stdout_lines": stdout.splitlines(), "stderr_lines": stderr.splitlines(), "msg": "",
    }  # fmt: skip
    if completed.truncated:
        result["truncated"] = True
    if completed.left_open:
        result["msg"] = (
            "a process that it started goes on printing; what it says after the end of the command is not kept"
        )
    if completed.exit_code != 0:
        result |= {"failed": True, "msg": "non-zero return code"}
    return result


def _make_modules(source: str) -> str:
    """Statements that define the modules of `guest_side` that a program imports, since a guest has no file of them."""
    made = ""
    for name in re.findall(rf"^from {re.escape(_PACKAGE)}\.([a-z_]+) import", source, re.MULTILINE):
        inner = (_GUEST_SIDE / f"{name}.py").read_text(encoding="utf-8")
        made += (
            f"import sys as _sys, types as _types\nif {_PACKAGE + '.' + name!r} not in _sys.modules:\n"
            f"    _made = _types.ModuleType({_PACKAGE + '.' + name!r})\n    exec({inner!r}, _made.__dict__)\n"
            "    _sys.modules[_made.__name__] = _made\n"
        )
    return made


def run_guest_side(call: Call, script: str, arguments: Mapping[str, Any]) -> Result:
    """Run one of our scripts with python3 in the guest. Arguments are never in an argv. The answer is not trusted."""
    source = (_GUEST_SIDE / f"{script}.py").read_text(encoding="utf-8")
    packed = json.dumps(dict(arguments))
    program = (
        f"{_make_modules(source)}{source}\nimport json as _json\nprint({_MARK!r} +"
        f" _json.dumps(run(_json.loads({packed!r}))))\n"
    )
    completed = call.guest.run(
        ["python3", "-I", "-"],
        timeout=call.timeout,
        stdin=program.encode("utf-8", "surrogateescape"),
        environment=call.environment,
        become=call.become,
        max_output=8 * MAX_REGISTERED,
    )
    for line in reversed(text_of(completed.stdout).splitlines()):
        if line.startswith(_MARK):
            try:
                answer = json.loads(line.removeprefix(_MARK))
            except (ValueError, RecursionError):
                break
            if isinstance(answer, dict):
                answer["changed"] = answer.get("changed") is True
                return {str(key): value for key, value in answer.items()}
    missing = completed.exit_code in (126, 127)
    raise ModuleFailure(
        f"{call.module} requires {NO_PYTHON}" if missing else "the guest's python3 gave no answer",
        rc=completed.exit_code,
        module_stdout=keep_end(text_of(completed.stdout), 2000),
        module_stderr=keep_end(text_of(completed.stderr), 2000),
    )
