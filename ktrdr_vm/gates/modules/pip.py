"""`pip`: Python packages of the guest."""

from __future__ import annotations

import posixpath
import shlex

from ktrdr_vm.errors import keep_end
from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result, command_result, text_of
from ktrdr_vm.guest.protocol import GuestResult

_STATES = {"latest": ["-U"], "forcereinstall": ["-U", "--force-reinstall"], "absent": ["-y"]}


def run_pip(call: Call) -> Result:
    names = [str(name) for name in call.get("name", [])]
    state, requirements, version = str(call.get("state", "present")), call.get("requirements"), call.get("version")
    if not names and not requirements:
        return {"changed": False, "msg": "No valid name or requirements file found."}
    if version is not None:
        names = [f"{names[0]}=={version}"]
    if call.check:
        return {"changed": False, "skipped": True, "msg": "pip is not run in check mode"}
    program, created = _find_pip(call)
    words = [program, "uninstall" if state == "absent" else "install", *_STATES.get(state, [])]
    words += ["--break-system-packages"] if call.get("break_system_packages", False) else []
    words += shlex.split(str(call.get("extra_args", "")))
    words += (["-e"] if call.get("editable", False) and names else []) + names
    words += ["-r", str(requirements)] if requirements else []
    before = _list_packages(call, program)
    result = command_result(_run(call, words), words)
    about = {
        "name": call.get("name"),
        "version": version,
        "state": state,
        "requirements": requirements,
        "virtualenv": call.get("virtualenv"),
    }
    result |= about
    if result["rc"] != 0:
        said = [line for line in f"{result['stdout']}\n{result['stderr']}".splitlines() if line.strip()]
        return result | {
            "changed": False,
            "msg": f"pip failed with exit code {result['rc']}: {keep_end(' / '.join(said[-3:]), 1500)}",
        }
    return result | {"changed": created or state == "forcereinstall" or _list_packages(call, program) != before}


def _run(call: Call, words: list[str]) -> GuestResult:
    return call.run(["env", "LC_ALL=C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK=1", *words], chdir=call.get("chdir"))


def _list_packages(call: Call, program: str) -> list[str]:
    return sorted(text_of(_run(call, [program, "list", "--format=freeze"]).stdout).splitlines())


def _find_pip(call: Call) -> tuple[str, bool]:
    """The program, and whether its virtual environment was created now."""
    folder = call.get("virtualenv")
    if folder is None:
        if call.get("executable"):
            return str(call.get("executable")), False
        found = text_of(call.run(["sh", "-c", "command -v pip3 || command -v pip"]).stdout).split()
        if not found:
            raise ModuleFailure("Unable to find any of pip3, pip to use.  pip needs to be installed.")
        return found[0], False
    program = posixpath.join(posixpath.join(str(call.get("chdir") or ""), str(folder)), "bin", "pip")
    if call.run(["test", "-e", program]).exit_code == 0:
        return program, False
    command = shlex.split(str(call.get("virtualenv_command", "virtualenv")))
    if command == ["virtualenv"] and call.run(["sh", "-c", "command -v virtualenv"]).exit_code != 0:
        command = ["python3", "-m", "venv"]
    command += ["--system-site-packages"] if call.get("virtualenv_site_packages", False) else []
    command += ["-p", str(call.get("virtualenv_python"))] if call.get("virtualenv_python") else []
    done = _run(call, [*command, str(folder)])
    if done.exit_code != 0:
        raise ModuleFailure(
            f"the virtual environment cannot be created: {keep_end(text_of(done.stderr or done.stdout).strip(), 1500)}",
            rc=done.exit_code,
        )
    return program, True
