"""A guest that is a network namespace: the real firewall, guard and tap of an instance, and no virtual machine. It is
there in a second.

A veth pair is used as the tap: the host's end has the tap's name and mark, so that the real resource takes it as its
own and moves it into the network namespace of the instance, as one that QEMU has opened. What protects can be taken out
(`sabotage`), to see that the same attack then gets through.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.ledger import read_ledger
from ktrdr_vm.host import process
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.links import read_link
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.allocation import find_users
from ktrdr_vm.instance.resources.base import Blueprint, Target
from ktrdr_vm.instance.resources.firewall import Firewall
from ktrdr_vm.instance.resources.guard import Guard
from ktrdr_vm.instance.resources.namespace import Namespace
from ktrdr_vm.instance.resources.tap import Tap, move_in
from ktrdr_vm.plan.facts import Allocation, Facts, ImageFacts, allocate
from ktrdr_vm.plan.guard_interface import GUEST_MAC
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import build_profile
from laboratory import probes
from laboratory.namespaces import inside, ip, make_namespace, remove_namespace

Documents = dict[str, str]
Sabotage = Callable[[Documents], None]

_NUMBERS = itertools.count()
# Slots that no instance of the lab's home gets: those begin at 0.
_FIRST_SLOT = 900
INTERFACE = "eth0"


def replace(document: str, old: str, new: str) -> Sabotage:
    """Change one place of one document. A text that is not there is a mistake in the test."""

    def change(documents: Documents) -> None:
        assert old in documents[document], f"{document} has no {old!r}: the sabotage is out of date"
        documents[document] = documents[document].replace(old, new)

    return change


@dataclass(frozen=True)
class _SabotagedPlan:
    """A plan whose name lists were changed as well."""

    plan: Plan
    lists: Mapping[str, str]
    documents: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plan, name)

    def render(self, *_: object) -> dict[str, str]:
        return self.documents

    @property
    def egress(self) -> Any:
        return type("Lists", (), {"name_lists": self.lists})


class NamespaceGuest:
    """Use as a context. `allow` is the profile's egress.allow; pass `egress` instead for the whole mapping as it stands
    in YAML."""

    def __init__(
        self,
        home: Home,
        allow: list[dict[str, Any]] | None = None,
        *,
        profile: Mapping[str, Any] | None = None,
        reserved: tuple[tuple[str, int], ...] = (),
        collector: Collector | None = None,
        presets: tuple[tuple[str, tuple[EgressRule, ...]], ...] = (),
        sabotage: tuple[Sabotage, ...] = (),
    ) -> None:
        number = next(_NUMBERS)
        document = (
            {"version": 1, "name": "net", "image": "none", "egress": {"allow": allow or []}}
            if profile is None
            else dict(profile)
        )
        image = ImageFacts("none", "0" * 64, "/nonexistent")
        facts = Facts(
            "tcg",
            "/bin/false",
            "q35",
            str(home.root),
            image,
            owner_reserved=tuple((IPv4Address(address), port) for address, port in reserved),
            collector=collector,
            presets=presets,
        )
        self.identity = parse_instance_id(f"lab-net-{os.getpid()}-{number}")
        self.plan = Plan(build_profile(document), facts, self.identity, document)
        self.allocation: Allocation = allocate(
            _FIRST_SLOT + number, genid="", host_key="", host_public_key="", login_public_key="", users=find_users()
        )
        self.paths = home.instance(self.identity.instance_id)
        documents = self.plan.render(self.allocation)
        lists = self.plan.egress.name_lists
        documents |= lists
        for change in sabotage:
            change(documents)
        plan: Any = _SabotagedPlan(self.plan, {name: documents[name] for name in lists}, documents)

        def no_guest() -> Any:
            raise AssertionError("there is no SSH in a namespace")

        blueprint = Blueprint(plan, self.allocation, no_guest, lambda _: b"")
        target = Target(self.identity, self.paths, Libvirt())
        self.target = target
        self.host_namespace, self.firewall = Namespace(target, blueprint), Firewall(target, blueprint)
        self.guard, self.tap = Guard(target, blueprint), Tap(target, blueprint)
        self.resources = (self.host_namespace, self.firewall, self.guard, self.tap)
        self.namespace = f"guest{number}"
        home.create()

    @property
    def gateway(self) -> str:
        return self.allocation.gateway

    @property
    def address(self) -> str:
        return self.allocation.guest

    @property
    def host_mac(self) -> str:
        link = read_link(self.identity.tap, self.identity.namespace)
        assert link is not None
        return str(link["address"])

    def __enter__(self) -> NamespaceGuest:
        self.paths.directory.mkdir(mode=0o711)
        try:
            self.host_namespace.create()
            self.firewall.create()
            self.guard.create()
            self._make_link()
            move_in(self.target, self.allocation)
            for resource in self.resources:
                assert (found := resource.verify()) == [], (resource.kind, found)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make_link(self) -> None:
        make_namespace(self.namespace)
        name, there = self.identity.tap, self.namespace
        ip(f"link add {name} type veth peer name {INTERFACE} netns {there}")
        Path("/sys/class/net", name, "ifalias").write_text(self.target.mark)
        ip(f"link set {INTERFACE} address {GUEST_MAC}", there)
        ip(f"addr add {self.address}/30 dev {INTERFACE}", there)
        ip(f"link set {INTERFACE} up", there)
        ip(f"route add default via {self.gateway}", there)

    def __exit__(self, *_: object) -> None:
        """Take it apart, and assert that nothing is left of it."""
        for resource in reversed(self.resources):
            resource.remove()
        if Path("/run/netns", self.namespace).exists():
            remove_namespace(self.namespace)
        shutil.rmtree(self.paths.directory, ignore_errors=True)
        assert [resource.kind for resource in self.resources if resource.exists()] == []

    # -- as the guest -----------------------------------------------------------------------------------------------

    def probe(self, kind: str, **fields: Any) -> dict[str, Any]:
        """One probe from inside."""
        with inside(self.namespace):
            return probes.run({"kind": kind, **fields})

    def probe_all(self, wanted: list[dict[str, Any]], at_once: int = 16) -> list[dict[str, Any]]:
        with inside(self.namespace):
            return probes.run_all(wanted, at_once)

    def lookup(self, name: str, **fields: Any) -> dict[str, Any]:
        return self.probe("dns", address=self.gateway, name=name, **{"limit": 5, **fields})

    # -- as root of the host -------------------------------------------------------------------------------------------

    def nft(self, words: str) -> str:
        """nft in the namespace of the instance."""
        with inside(self.identity.namespace):
            return process.run(["nft", words], timeout=10).text

    def count_flows(self) -> int:
        """The entries of the namespace's connection table."""
        with inside(self.identity.namespace):
            return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    def ledger(self, **wanted: Any) -> list[dict[str, Any]]:
        """The ledger's lines that carry these fields, after everything known was written."""
        GuardClient(self.paths.guard).flush()
        return self.read_ledger(**wanted)

    def read_ledger(self, **wanted: Any) -> list[dict[str, Any]]:
        rows = read_ledger(self.paths.ledger, follow=False)
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
