"""The world of this process's own user, with the state directory and the policy that hold for that user."""

from __future__ import annotations

from ktrdr_vm.host.paths import find_home
from ktrdr_vm.policy.load import find_policy
from ktrdr_vm.world.enter import enter_world


def enter_own_world() -> None:
    """Enter it, and make it if there is none. HostError with the command to run if this host cannot have one."""
    enter_world(find_home().root, paths=(find_policy(),))
