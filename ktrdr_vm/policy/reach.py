"""The destinations and secrets that a profile allows, as a set that can be compared between two versions. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ktrdr_vm.profile.model import Profile


@dataclass(frozen=True, order=True)
class Reach:
    """One destination or use. `carries` is True if a secret of the profile can be sent there."""

    text: str
    carries: bool


def list_reach(profile: Profile) -> frozenset[Reach]:
    """All destinations and uses. A secret in the guest can be sent to every allowed destination."""
    found: set[Reach] = set()
    inside = bool(profile.delivered)
    for secret in profile.secrets:
        source = secret.env or secret.file or " ".join(secret.command)
        if secret.broker is None:
            found.add(Reach(f"the secret {source} in the guest", True))
        else:
            broker = secret.broker
            found.add(Reach(f"the secret {source} to {broker.host}: {broker.describe()}", True))
    for requests in profile.limited:
        found.add(Reach(f"requests to {requests.host}: {requests.describe()}", inside))
    for rule in (one for one in profile.egress.allow if one.requests is None):
        found |= {
            Reach(f"egress to {rule.destination}:{port}", inside) for port in ((0,) if rule.preset else rule.ports)
        }
    if profile.egress.mode == "observe":
        found.add(Reach("egress to every public address (observe mode)", inside))
    return frozenset(found)


def find_beyond(now: Profile, before: Profile | None) -> tuple[Reach, ...]:
    """The elements of `now` that are not in `before`, sorted; all of them without `before`."""
    known = list_reach(before) if before is not None else frozenset()
    return tuple(sorted(list_reach(now) - known))
