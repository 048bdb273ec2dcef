"""Credentials that never enter the guest: they are in the memory of the guard, and of the proxy, which adds them to
requests."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable
from typing import Any

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.plan.guard_interface import OPEN, VALUES
from ktrdr_vm.profile.scalars import MAX_HEADER

_HEADER_VALUE = re.compile(rf"[!-~](?:[ -~]{{0,{MAX_HEADER - 2}}}[!-~])?")


class Brokers:
    """`routes` are those of guard.json: secret, port and gate of each, or only a port if it has no secret. A guard has
    no values and no passed gates when it starts."""

    def __init__(self, routes: list[dict[str, Any]], proxy: ProxyControl, ledger: Ledger) -> None:
        self._gates = {str(route["secret"]): str(route["after"]) for route in routes if route["secret"]}
        self._ports = [int(route["port"]) for route in routes]
        self._proxy = proxy
        self._ledger = ledger
        self._values: dict[str, str] = {}
        self._open: dict[str, str] = {}
        self._maps_loaded = not self._gates
        # The proxy loads a map only if a rule uses it.
        self._maps = (VALUES, OPEN) if any(self._gates.values()) else (VALUES,)
        if self._gates:
            proxy.write_maps({}, self._maps)

    def listen(self, bind: Callable[[int], socket.socket]) -> dict[str, socket.socket]:
        """Bind the ports on which the guest reaches the brokered hosts. Returns the listeners by their names in the
        proxy's configuration. `bind` makes a listener."""
        return {f"KTRDR_FD_BROKER_{port}": bind(port) for port in self._ports}

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """The operations of the socket protocol."""
        return {
            "broker_give": self._give,
            "broker_take": self._take,
            "broker_list": self._list,
            "gate_passed": self._pass,
            "gates_began": self._close,
        }

    def proxy_started(self) -> None:
        """Called for each new process of the proxy. Its maps are empty, and it refuses requests until they are
        loaded."""
        self._maps_loaded = not self._gates

    def notify(self) -> None:
        """Load the maps into the proxy if they have changed. If it does not listen yet, they are loaded at the next
        poll. An error is not recorded, because it could contain a value."""
        if self._maps_loaded:
            return
        with contextlib.suppress(KtrdrError):
            self._proxy.load_maps({VALUES: self._values, OPEN: self._open}, self._maps)
            self._maps_loaded = True

    def _give(self, request: dict[str, Any]) -> dict[str, Any]:
        """ValueError for a secret that is not brokered here, and for a text that cannot be the value of a header."""
        name, value = self._require(request), request["value"]
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name} is not a valid value of a header")
        self._values[name] = value
        return self._changed("given", name)

    def _take(self, request: dict[str, Any]) -> dict[str, Any]:
        name = self._require(request)
        self._values.pop(name, None)
        return self._changed("taken back", name)

    def forget(self) -> None:
        """Remove every value: the VM that they were set for has ended."""
        for name in sorted(self._values):
            del self._values[name]
            self._changed("taken back, its machine has ended", name)

    def _pass(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the secrets that wait for this gate, which has passed."""
        gate = str(request["gate"])
        self._open |= {name: "passed" for name, after in self._gates.items() if after and after == gate}
        return self._changed(f"the gate {gate[:100]} has passed", "")

    def _close(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Close the secrets that wait for a gate. Another run has begun, in which no gate has passed yet."""
        self._open = {}
        return self._changed("the gates run again", "")

    def _list(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Names only: which values are held, which are open, and whether the proxy has them."""
        self.notify()
        return {"held": sorted(self._values), "open": sorted(self._open), "told": self._maps_loaded}

    def _changed(self, message: str, name: str) -> dict[str, Any]:
        self._ledger.write("broker", "note", rule=name, message=message)
        self._maps_loaded = False
        self.notify()
        return {"ok": True}

    def _require(self, request: dict[str, Any]) -> str:
        name = str(request["name"])
        if name not in self._gates:
            raise ValueError(f"{name[:100]!a} is not brokered in this instance")
        return name
