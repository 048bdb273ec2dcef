"""The far end of a connection: answers one client on two descriptors, and ends with it. What was started goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.places.service import Service
from ktrdr_vm.places.wire import Lines, LostConnection, check_greeting, render_error

# Seconds without a word of the client: it has gone, and the connection does not say so.
_SILENCE = 900.0


def serve(lines: Lines, version: str, schema: int, open_service: Callable[[dict[str, Any]], Service]) -> None:
    """Answer until the client has gone. `open_service` gets the settings of its greeting."""
    try:
        lines.send({"ktrdr-vm": version, "schema": schema})
        greeting = lines.receive(timeout=60)
        if greeting is None:
            return
        check_greeting(greeting, (version, schema), "client")
        settings = greeting.get("settings")
        service = open_service(settings if isinstance(settings, dict) else {})
        lines.send({"facts": service.facts()})
        while (message := lines.receive(timeout=_SILENCE)) is not None:
            lines.send({"id": message.get("id"), **_answer(service, message)})
    except LostConnection:
        return
    except KtrdrError as error:
        lines.send({"error": render_error(error)})


def _answer(service: Service, message: dict[str, Any]) -> dict[str, Any]:
    words = message.get("with", {})
    try:
        if not isinstance(words, dict) or not all(isinstance(key, str) for key in words):
            raise UsageError("`with` must be an object", where="serve", hint="this is a bug in ktrdr-vm: report it")
        return {"result": service.call(str(message.get("do")), **words)}
    except KtrdrError as error:
        return {"error": render_error(error)}
    except OSError as error:
        return {
            "error": {
                "kind": "HostError",
                "message": error.strerror or str(error),
                "where": str(error.filename or ""),
                "hint": "",
            }
        }
