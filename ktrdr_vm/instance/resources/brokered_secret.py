"""A secret that the guard uses for the guest: it is in the memory of the guard and of the proxy, and nowhere in the
guest."""

from __future__ import annotations

import time

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.instance.resources.base import Blueprint, Resource, Target
from ktrdr_vm.profile.model import Secret as SecretEntry

# A proxy that was just started reads its configuration first.
TOLD_LIMIT = 20.0


class BrokeredSecret(Resource):
    kind = "secret"
    lives_in = "guard"
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
        return self._is_guarded() and self._entry.name in self._guard.list_credentials().held

    def create(self) -> None:
        entry = self._entry
        assert entry.broker is not None, "only a brokered secret is made here"
        try:
            value = entry.broker.header.render(self.blueprint.read_secret(entry))
        except ValueError as reason:
            raise HostError(
                f"the secret {entry.name} cannot stand in a header: {reason}",
                where="secrets",
                hint="look at what its source gives; a closing newline is taken away",
            ) from None
        self._guard.give_credential(entry.name, value)
        self._wait_told("the proxy does not take the secret")

    def verify(self) -> list[str]:
        return [] if self.exists() else ["the guard does not have it; requests with it are refused"]

    def remove(self) -> None:
        if self._is_guarded():
            self._guard.take_credential(self._entry.name)
            self._wait_told("the proxy may still have the secret")

    def _wait_told(self, otherwise: str) -> None:
        """ProvisionError, saying what is the case `otherwise`, when the proxy does not hear of a change."""
        end = time.monotonic() + TOLD_LIMIT
        while not self._guard.list_credentials().told:
            if time.monotonic() > end:
                raise ProvisionError(otherwise, where=self.name, hint="look into guard.log")
            time.sleep(0.1)

    def _is_guarded(self) -> bool:
        return is_locked(self.target.paths.guard / "guard.lock")

    @property
    def _guard(self) -> GuardClient:
        return GuardClient(self.target.paths.guard)
