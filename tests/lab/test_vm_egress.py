"""Egress from a root shell in a real VM: what is allowed works."""

from __future__ import annotations

import pytest
from laboratory.instances import LabInstance
from laboratory.lab import Lab

pytestmark = pytest.mark.vm


def test_the_guest_is_a_machine_of_its_own(instance: LabInstance) -> None:
    assert instance.shell("hostname")[1].strip() == instance.instance_id
    assert instance.shell("cat /data/input.txt")[1] == "from the host\n"
    assert instance.shell("id -u")[1].strip() == "0"
    assert instance.guest.run(["cat", "/run/secrets/canary"], timeout=20).stdout == instance.canary
