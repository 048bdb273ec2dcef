"""`uri` and `wait_for`, run in the guest."""

from __future__ import annotations

from ktrdr_vm.gates.modules.base import Call, Result, run_guest_side


def run_uri(call: Call) -> Result:
    method = str(call.get("method", "GET")).upper()
    if call.check:
        return {"changed": False, "skipped": True, "msg": "remote module (uri) does not support check mode"}
    arguments = {
        "url": str(call.get("url")),
        "method": method,
        "body": call.get("body"),
        "body_format": call.get("body_format", "raw"),
        "headers": call.get("headers", {}),
        "status_code": [int(code) for code in call.get("status_code", [200])],
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


def run_wait_for(call: Call) -> Result:
    if call.check:
        return {"changed": False, "skipped": True, "msg": "remote module (wait_for) does not support check mode"}
    arguments = {
        "host": str(call.get("host", "127.0.0.1")),
        "port": call.get("port"),
        "path": call.get("path"),
        "state": str(call.get("state", "started")),
        "timeout": call.get("timeout", 300),
        "delay": call.get("delay", 0),
        "connect_timeout": call.get("connect_timeout", 5),
        "sleep": call.get("sleep", 1),
        "search_regex": call.get("search_regex"),
        "msg": call.get("msg"),
    }
    return run_guest_side(call, "network", {"action": "wait_for", **arguments})
