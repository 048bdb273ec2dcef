"""`service` and `systemd`: units of the guest, with systemctl."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.errors import keep_end
from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result, text_of
from ktrdr_vm.guest.protocol import GuestResult

_RUNNING = ("active", "activating", "reloading")


def run_service(call: Call) -> Result:
    unit = call.get("name")
    for name, words in (("daemon_reload", "daemon-reload"), ("daemon_reexec", "daemon-reexec")):
        if call.get(name, False) and not call.check:
            _act(call, words)
    result: Result = {"changed": False, "name": unit, "status": {}}
    if unit is not None:
        status = result["status"] = _show(call, unit)
        _mask(call, unit, result)
        if status.get("LoadState") not in ("loaded", "masked") and any(
            call.get(name) is not None for name in ("state", "enabled")
        ):
            raise ModuleFailure(f"Could not find the requested service {unit}: host")
        _enable(call, unit, result)
        _set_state(call, unit, status.get("ActiveState", ""), result)
    return result


def _systemctl(call: Call, *words: str) -> GuestResult:
    done = call.run(["env", "LC_ALL=C.UTF-8", "systemctl", *words])
    if done.exit_code == 127:
        raise ModuleFailure("this module requires systemd in the guest, and there is no systemctl")
    return done


def _act(call: Call, verb: str, *words: str) -> None:
    more = ["--no-block"] if call.get("no_block", False) else []
    done = _systemctl(call, *more, verb, *words)
    if done.exit_code != 0:
        said = keep_end(text_of(done.stderr or done.stdout).strip(), 2000)
        raise ModuleFailure(f"Unable to {verb} {' '.join(words[1:]) or 'systemd'}: {said}", rc=done.exit_code)


def _show(call: Call, unit: str) -> dict[str, Any]:
    done = _systemctl(call, "show", "--", unit)
    if done.exit_code != 0:
        raise ModuleFailure(
            f"the state of {unit} cannot be read: {keep_end(text_of(done.stderr).strip(), 500)}", rc=done.exit_code
        )
    return dict(line.split("=", 1) for line in text_of(done.stdout).splitlines() if "=" in line and line[:1].isalpha())


def _mask(call: Call, unit: str, result: Result) -> None:
    wanted = call.get("masked")
    if wanted is None or (text_of(_systemctl(call, "is-enabled", "--", unit).stdout).strip() == "masked") == wanted:
        return
    result["changed"] = True
    if not call.check:
        _act(call, "mask" if wanted else "unmask", "--", unit)
        result["status"] |= _show(call, unit)


def _enable(call: Call, unit: str, result: Result) -> None:
    wanted = call.get("enabled")
    if wanted is None:
        return
    found = _systemctl(call, "is-enabled", "--", unit)
    enabled = found.exit_code == 0 and text_of(found.stdout).strip() not in ("enabled-runtime", "indirect", "alias")
    result["enabled"] = wanted
    if enabled != wanted:
        result["changed"] = True
        if not call.check:
            _act(call, "enable" if wanted else "disable", "--", unit)


def _set_state(call: Call, unit: str, active: str, result: Result) -> None:
    """Start, stop, restart or reload, if the unit is not in that state."""
    state = call.get("state")
    if state is None:
        return
    result["state"] = state if state in ("started", "stopped") else "started"
    running = active in _RUNNING
    if state == "started":
        verb = "" if running else "start"
    elif state == "stopped":
        verb = "stop" if running or active == "deactivating" else ""
    else:
        verb = {"restarted": "restart", "reloaded": "reload"}[state] if running else "start"
    if verb:
        result["changed"] = True
        if not call.check:
            _act(call, verb, "--", unit)
