"""A secret that the guard uses for the guest: it is in the memory of the guard and of the proxy, and nowhere in the
guest."""

from __future__ import annotations

import time

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.instance.resources.base import Blueprint, Resource, Target
from ktrdr_vm.instance.resources.tap import is_guarded
from ktrdr_vm.profile.model import Secret as SecretEntry

# Seconds. A proxy that was just started reads its configuration first.
PROXY_LIMIT = 20.0


class BrokeredSecret(Resource):
    kind = "secret"
    location = "guard"
    needs_guest = True

    def __init__(self, target: Target, blueprint: Blueprint | None, entry: SecretEntry) -> None:
        super().__init__(target, blueprint)
        self._entry = entry

    @property
    def key(self) -> str:
        return f"secret:{self._entry.name}"

    @property
    def name(self) -> str:
        return self._entry.name

    def exists(self) -> bool:
        """True if the guard has it; False without a guard."""
        return is_guarded(self.target) and self._entry.name in self._guard.list_credentials().held

    def create(self) -> None:
        entry = self._entry
        assert entry.broker is not None, "only a brokered secret is made here"
        try:
            value = entry.broker.header.render(self.blueprint.read_secret(entry))
        except ValueError as reason:
            raise HostError(
                f"the secret {entry.name} cannot be sent in a header: {reason}",
                where="secrets",
                hint="check the value that its source provides; a newline at its end is removed",
            ) from None
        self._guard.give_credential(entry.name, value)
        self._wait_applied("the proxy does not accept the secret")

    def verify(self) -> list[str]:
        return [] if self.exists() else ["the guard does not have it; requests with it are refused"]

    def remove(self) -> None:
        if is_guarded(self.target):
            self._guard.take_credential(self._entry.name)
            self._wait_applied("the proxy may still have the secret")

    def _wait_applied(self, otherwise: str) -> None:
        """ProvisionError with the message `otherwise` when the proxy does not apply a change within PROXY_LIMIT."""
        end = time.monotonic() + PROXY_LIMIT
        while not self._guard.list_credentials().told:
            if time.monotonic() > end:
                raise ProvisionError(otherwise, where=self.name, hint="see guard.log")
            time.sleep(0.1)

    @property
    def _guard(self) -> GuardClient:
        return GuardClient(self.target.paths.guard)
