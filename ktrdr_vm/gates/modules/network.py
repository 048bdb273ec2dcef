"""`uri` and `wait_for`, run in the guest."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result, run_guest_side


def run_uri(call: Call) -> Result:
    method = str(call.get("method", "GET")).upper()
    if not method.isalpha() or len(method) > 20:
        raise ModuleFailure(f"Parameter 'method' needs to be a single word in uppercase, like GET or POST: {method!r}")
    if call.check:
        return {"changed": False, "skipped": True, "msg": "remote module (uri) does not support check mode"}
    arguments = {
        "url": str(call.get("url")),
        "method": method,
        "body": call.get("body"),
        "body_format": call.get("body_format", "raw"),
        "headers": call.get("headers", {}),
        "status_code": [_code(code) for code in call.get("status_code", [200])],
        "timeout": call.get("timeout", 30),
        "follow_redirects": call.get("follow_redirects", "safe"),
        "validate_certs": call.get("validate_certs", True),
        "return_content": call.get("return_content", False),
        "user": call.get("url_username"),
        "password": call.get("url_password"),
    }
    result = run_guest_side(call, "network", {"action": "uri", **arguments})
    status = result.get("status")
    result["status"] = status if isinstance(status, int) else -1
    return result


def _code(code: Any) -> int:
    try:
        return int(code)
    except (ValueError, TypeError):
        raise ModuleFailure(f"status_code must be a list of numbers, not {str(code)[:40]!r}") from None


def run_wait_for(call: Call) -> Result:
    port, path = call.get("port"), call.get("path")
    if port is not None and path is not None:
        raise ModuleFailure("port and path parameter can not both be passed to wait_for")
    state = str(call.get("state", "started"))
    if state in ("stopped", "absent") and call.get("search_regex"):
        raise ModuleFailure("state=absent should not be used in conjunction with search_regex")
    if call.check:
        return {"changed": False, "skipped": True, "msg": "remote module (wait_for) does not support check mode"}
    arguments = {
        "host": str(call.get("host", "127.0.0.1")),
        "port": port,
        "path": path,
        "state": state,
        "timeout": call.get("timeout", 300),
        "delay": call.get("delay", 0),
        "connect_timeout": call.get("connect_timeout", 5),
        "sleep": call.get("sleep", 1),
        "search_regex": call.get("search_regex"),
        "msg": call.get("msg"),
    }
    return run_guest_side(call, "network", {"action": "wait_for", **arguments})
