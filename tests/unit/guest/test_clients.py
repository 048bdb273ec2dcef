"""The settings of the plan are in the guest as files, before Docker starts, and the plan can be read back with them."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.clients import configure_clients
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import AUTHORITIES, Facts, GuestFile, ImageFacts
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.load import build_profile

SOURCE = {"version": 1, "name": "n", "image": "i"}
FILES = (
    GuestFile("/etc/pip.conf", "[global]\n", "preset python"),
    GuestFile(f"{AUTHORITIES}1.crt", "PEM\n", "/etc/company.crt"),
)


def make_plan(*files: GuestFile) -> Plan:
    facts = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d" * 64, "/i"), client_files=files)
    return Plan(build_profile(SOURCE), facts, parse_instance_id("a"), SOURCE)


class Guest:
    def __init__(self, code: int = 0) -> None:
        self.ran: list[tuple[str, dict[str, Any]]] = []
        self.code = code

    def run(self, command: str, **more: Any) -> GuestResult:
        self.ran.append((command, more))
        return GuestResult(self.code, b"", b"no space")


def test_the_files_arrive_with_their_paths_and_the_authorities_are_named() -> None:
    guest = Guest()
    configure_clients(guest, make_plan(*FILES))  # type: ignore[arg-type]
    [(_, more)] = guest.ran
    with tarfile.open(fileobj=io.BytesIO(more["stdin"])) as archive:
        there = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    assert there == {one.path.lstrip("/"): one.text.encode() for one in FILES}
    assert more["environment"] == {"AUTHORITIES": FILES[1].path} and more["become"]


def test_without_settings_the_guest_is_not_asked() -> None:
    guest = Guest()
    configure_clients(guest, make_plan())  # type: ignore[arg-type]
    assert guest.ran == []


def test_a_guest_that_cannot_write_them_is_an_error() -> None:
    with pytest.raises(GuestError, match="no space"):
        configure_clients(Guest(1), make_plan(*FILES))  # type: ignore[arg-type]


def test_the_plan_is_the_same_when_it_is_read_back_and_clients_are_told_of_an_authority() -> None:
    plan = make_plan(*FILES)
    again = plan_from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and again.digest == plan.digest != make_plan().digest
    assert plan.client_variables == {
        **dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), "/etc/ssl/certs/ca-certificates.crt"),
        "NODE_EXTRA_CA_CERTS": "/etc/ktrdr/authorities.pem",
    }
    assert replace(plan, facts=replace(plan.facts, client_files=FILES[:1])).client_variables == {}
