"""`command`, `shell` and `script`."""

from __future__ import annotations

import re
import secrets
import shlex
from typing import Any

from ktrdr_vm.gates.arguments import split_command
from ktrdr_vm.gates.modules.base import NO_PYTHON, Call, ModuleFailure, Result, command_result
from ktrdr_vm.gates.modules.sources import read_source

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_MAX_SCRIPT = 1024 * 1024
# 13 for what cannot be executed, 2 for a script whose interpreter is not there: the numbers of these errors.
_CAN_START = (
    'case $p in */*) [ -f "$p" ] && [ -x "$p" ] || exit 13; l=$(head -n 1 -- "$p" 2>/dev/null | tr -d "\\000");'
    " case $l in '#!'*) set -f; set -- ${l#??}; [ -e \"$1\" ] || exit 2;; esac;; esac"
)


def run_command(call: Call) -> Result:
    """Run words without a shell; variables of the guest's environment are expanded, as Ansible does."""
    argv = call.get("argv")
    if argv is None:
        try:
            words = split_command(str(call.get("cmd")))
        except ValueError as error:
            raise ModuleFailure(f"the command cannot be split into words: {error}") from None
    else:
        words = ["" if word is None else str(word) for word in argv]
    if not words:
        raise ModuleFailure("no command given", rc=256)
    expand = call.get("expand_argument_vars", True)
    # The words are quoted for a shell; it expands only the variables in them.
    line = " ".join(_expanding(word) if expand else shlex.quote(word) for word in words)
    return _run(call, line, words)


def run_shell(call: Call) -> Result:
    command = str(call.get("cmd"))
    executable = call.get("executable")
    return _run(call, [str(executable), "-c", command] if executable else command, command)


def run_script(call: Call) -> Result:
    """Send a script from beneath the playbook's folder or the workspace, run it there, remove it."""
    words = split_command(str(call.get("cmd")))
    if not words:
        raise ModuleFailure("no script given")
    if (skipped := _skip(call)) is not None:
        # The module of Ansible differs here from `command` and `shell`, which report success.
        return {"changed": False, "skipped": True, "msg": skipped["stdout"].removeprefix("skipped, since ")}
    within, known = call.host.find_folders("files"), call.host.files
    data = read_source(call.host.roots, words[0], max_bytes=_MAX_SCRIPT, within=within, known=known)
    if call.check:
        return {"changed": True, "rc": 0}
    place = f"/tmp/.ktrdr-script-{secrets.token_hex(8)}"
    executable = shlex.quote(str(call.get("executable"))) + " " if call.get("executable") else ""
    arguments = " ".join(shlex.quote(word) for word in words[1:])
    line = (
        f"(set -C; umask 077; head -c {len(data)} >{place}) && chmod 0700 {place} || exit 1; {_chdir(call)}"
        f"{executable}{place} {arguments} </dev/null; r=$?; rm -f {place}; exit $r"
    )
    completed = call.run(line, stdin=data)
    result = command_result(completed, None)
    del result["cmd"]
    program = call.get("executable")
    # A script can end with this code as well, so the guest is asked.
    if program and completed.exit_code == 127 and not _finds_program(call, str(program)):
        what = NO_PYTHON if program == "python3" else f"{program} in the guest, where it is not there"
        result["msg"] = f"the script requires {what}"
    return result


def _finds_program(call: Call, program: str) -> bool:
    return call.run(f"command -v {shlex.quote(program)} >/dev/null 2>&1").exit_code == 0


def _chdir(call: Call) -> str:
    return f"cd -- {shlex.quote(str(call.get('chdir')))} || exit 1; " if call.get("chdir") else ""


def _expanding(word: str) -> str:
    """A word for the shell in which `$NAME` and a leading `~` are expanded, and everything else is literal."""
    prefix = ""
    if word == "~" or word.startswith("~/"):
        prefix, word = '"${HOME:-~}"', word[1:]
    parts, end = [prefix], 0
    for found in _VARIABLE.finditer(word):
        if literal := word[end : found.start()]:
            parts.append(shlex.quote(literal))
        name = found.group(1) or found.group(2)
        if name[0].isdigit() or not name.isascii():
            parts.append(shlex.quote(found.group()))
        else:
            # A variable that is not set stays as written.
            parts.append(f'"${{{name}}}"$([ "${{{name}+x}}" ] || echo {shlex.quote(found.group())})')
        end = found.end()
    if (rest := word[end:]) or not (word or prefix):
        parts.append(shlex.quote(rest))
    return "".join(parts)


def _skip(call: Call) -> Result | None:
    """The result of `creates` and `removes` if the command is not required; else None."""
    for option, stops_when, said in (("creates", True, "since"), ("removes", False, "since")):
        name = call.get(option)
        if name is None:
            continue
        pattern = "".join(
            part if part in ("*", "?") else shlex.quote(part) for part in re.split(r"([*?])", str(name)) if part
        )
        probe = call.run(f'for f in {pattern}; do [ -e "$f" ] && exit 0; done; exit 1', chdir=call.get("chdir"))
        if (probe.exit_code == 0) == stops_when:
            state = "exists" if stops_when else "does not exist"
            stdout = f"skipped, {said} {name} {state}"
            return {"changed": False, "rc": 0, "stdout": stdout, "stdout_lines": [stdout], "stderr": "",
                    "stderr_lines": [], "msg": f"Did not run command {said} '{name}' {state}"}  # fmt: skip
    return None


def _run(call: Call, command: list[str] | str, shown: Any) -> Result:
    if (skipped := _skip(call)) is not None:
        return skipped | {"cmd": shown}
    if call.check:
        return {"changed": False, "skipped": True, "cmd": shown, "msg": "Command would have run if not in check mode"}
    stdin = b""
    if call.get("stdin") is not None:
        stdin = str(call.get("stdin")).encode() + (b"\n" if call.get("stdin_add_newline", True) else b"")
    started, clock = call.host.now(), call.host.monotonic()
    completed = call.run(command, stdin=stdin, chdir=call.get("chdir"))
    if completed.exit_code != 0:
        _require_start(call, shown, completed.exit_code)
    result = command_result(completed, shown, strip=call.get("strip_empty_ends", True))
    return result | {"start": started, "end": call.host.now(), "delta": _delta(call.host.monotonic() - clock)}


def _require_start(call: Call, words: Any, code: int) -> None:
    """ModuleFailure if the command that failed was not started, since its folder or its program is not there."""
    chdir = call.get("chdir")
    if chdir and call.run(["test", "-d", str(chdir)]).exit_code != 0:
        raise ModuleFailure(f"Unable to change directory before execution: {chdir!r} is not a folder", cmd=words)
    if isinstance(words, list) and call.module == "command":
        probe = f"command -v {_expanding(words[0])} >/dev/null 2>&1"
        if code in (126, 127):
            # The code of a shell that cannot start a program, which a program may have as well.
            probe = f"p=$(command -v {_expanding(words[0])}) || exit 2; {_CAN_START}"
        found = call.run(probe, chdir=str(chdir) if chdir else None)
        if found.exit_code != 0:
            streams = {"stdout": "", "stderr": "", "stdout_lines": [], "stderr_lines": []}
            shown, rc = " ".join(shlex.quote(word) for word in words), 13 if found.exit_code == 13 else 2
            raise ModuleFailure(
                f"Error executing command: {words[0]!r} is not there or cannot be run",
                rc=rc,
                cmd=shown,
                **streams,
            )


def _delta(seconds: float) -> str:
    """A duration in the format of `datetime.timedelta`, as in results of Ansible."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{int(seconds % 1 * 1e6):06}"
