"""Each protection taken out, and the same attack gets through: what shows that the tests beside this one can fail.

Where two layers hold the same thing, each alone is shown to hold it, and both out is shown to open it.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.namespaces import inside
from laboratory.netguest import NamespaceGuest, Sabotage, replace
from laboratory.recorder import wait_until

ALLOWED = [{"host": "allowed.test.lab", "ports": [80, 443]}, {"host": "git.test.lab", "ports": [22]}]

NO_FINAL_DROP = replace(
    "ruleset.nft",
    "        meta l4proto tcp ct state established counter name ended reject with tcp reset\n        jump deny\n    }\n",
    "    }\n",
)
NO_RESERVED = replace("ruleset.nft", "        ip daddr @reserved jump deny\n", "")
NO_LOCAL = replace("ruleset.nft", "        fib daddr type { local, broadcast, anycast, multicast } jump deny\n", "")
NO_PROXY_RESERVED = replace("ruleset-host.nft", "        ip daddr @reserved counter name proxy_reserved drop\n", "")
NO_ON_LINK = replace("ruleset.nft", "        ip daddr @on_link jump deny\n", "")
NO_PROXY_ON_LINK = replace("ruleset-host.nft", "        ip daddr @on_link counter name proxy_reserved drop\n", "")
NO_PROXY_LOCAL = replace(
    "ruleset-host.nft",
    "        fib daddr type { local, broadcast, anycast, multicast } counter name proxy_reserved drop\n",
    "",
)
NO_TLS_NAMES = replace("proxy.cfg", "    tcp-request content silent-drop if hello !allowed !granted\n", "")
ANY_TLS_NAME = replace(
    "proxy.cfg", "    tcp-request content silent-drop if hello !allowed !{ var(txn.grant_slot) -m found }\n", ""
)
NO_TLS_DESTINATION = replace("proxy.cfg", "    tcp-request content set-dst var(txn.address) if hello\n", "")
NO_HTTP_NAMES = replace("proxy.cfg", " unless allowed or granted\n", " if FALSE\n")
ANY_HTTP_NAME = replace(
    "proxy.cfg",
    " if !allowed !{ var(txn.grant_slot) -m found }\n    http-request set-var(txn.verdict) str(allow)",
    " if FALSE\n    http-request set-var(txn.verdict) str(allow)",
)
NO_BY_ADDRESS = replace("ruleset.nft", "        meta l4proto tcp counter name ended reject with tcp reset\n", "")


def test_without_the_last_drop_an_address_is_reached(lab: Lab) -> None:
    """Rows 1 and 2. Two layers: each packet where it comes in, and the flow again where the proxy listens."""
    cases: tuple[tuple[tuple[Sabotage, ...], str], ...] = (
        ((), "timeout"),
        ((NO_BY_ADDRESS,), "timeout"),
        ((NO_FINAL_DROP,), "refused"),
        ((NO_FINAL_DROP, NO_BY_ADDRESS), "connected"),
    )
    for sabotage, outcome in cases:
        with NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest:
            mark = lab.recorder.mark()
            assert guest.probe("tcp", address=world.EVIL, port=22)["outcome"] == outcome
            assert guest.probe("tcp", address=world.WEB, port=22)["outcome"] == outcome
            arrived = {("tcp", world.EVIL, 22), ("tcp", world.WEB, 22)} & lab.recorder.endpoints(mark)
            assert bool(arrived) == (outcome == "connected")


def test_with_the_foreign_name_in_the_list_tls_gets_there(lab: Lab) -> None:
    """Row 3: the same hello, refused and let through by the list alone."""
    for extra, outcome in (([], ("reset", "closed")), ([{"host": "other.test.lab", "ports": [443]}], ("answered",))):
        with NamespaceGuest(lab.home, [*ALLOWED, *extra]) as guest:
            mark = lab.recorder.mark()
            assert guest.probe("tls", address=world.WEB, port=443, name="other.test.lab")["outcome"] in outcome
            assert ({hit.name for hit in lab.recorder.hits(mark, "tls")} == {"other.test.lab"}) == bool(extra)


def test_without_the_name_check_the_resolver_still_refuses(lab: Lab) -> None:
    """Row 3: two layers. The proxy asks the guard's resolver, and that one knows allowed names only."""
    with NamespaceGuest(
        lab.home, ALLOWED, sabotage=(NO_TLS_NAMES, ANY_TLS_NAME, NO_HTTP_NAMES, ANY_HTTP_NAME)
    ) as guest:
        mark = lab.recorder.mark()
        assert guest.probe("tls", address=world.WEB, port=443, name="evil.test.lab")["outcome"] in ("reset", "closed")
        request = "GET / HTTP/1.0\r\nHost: evil.test.lab\r\n\r\n"
        assert guest.probe("http", address=world.WEB, port=80, send=request)["status"] == 403
        assert [hit for hit in lab.recorder.hits(mark) if hit.server in ("tls", "http")] == []


def test_without_the_name_check_and_with_a_loose_resolver_evil_is_reached(lab: Lab) -> None:
    """Rows 3 and 5: both layers out. The resolver is made to know the name by a rule for another port."""
    allow = [*ALLOWED, {"host": "evil.test.lab", "ports": [8443]}]
    with NamespaceGuest(lab.home, allow) as guest:
        assert guest.probe("tls", address=world.WEB, port=443, name="evil.test.lab")["outcome"] in ("reset", "closed")
    with NamespaceGuest(lab.home, allow, sabotage=(NO_TLS_NAMES, ANY_TLS_NAME, NO_HTTP_NAMES, ANY_HTTP_NAME)) as guest:
        assert (
            f"served by {world.EVIL}:443"
            in guest.probe("tls", address=world.WEB, port=443, name="evil.test.lab")["said"]
        )
        request = "GET / HTTP/1.0\r\nHost: evil.test.lab\r\n\r\n"
        assert f"served by {world.EVIL}:80" in guest.probe("http", address=world.WEB, port=80, send=request)["said"]


def test_without_the_proxys_own_destination_the_guest_chooses_it(lab: Lab) -> None:
    """Row 4."""
    for sabotage, served in (((), world.WEB), ((NO_TLS_DESTINATION,), world.EVIL)):
        with NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest:
            answer = guest.probe("tls", address=world.EVIL, port=443, name="allowed.test.lab")
            assert f"served by {served}:443" in answer["said"]


@pytest.mark.parametrize(
    ("sabotage", "opened"),
    [
        ((), False),
        ((NO_RESERVED, NO_FINAL_DROP, NO_BY_ADDRESS), False),
        ((NO_PROXY_RESERVED, NO_FINAL_DROP, NO_BY_ADDRESS), False),
        ((NO_RESERVED, NO_PROXY_RESERVED, NO_ON_LINK, NO_FINAL_DROP, NO_BY_ADDRESS), False),
        ((NO_RESERVED, NO_PROXY_RESERVED, NO_PROXY_ON_LINK, NO_FINAL_DROP, NO_BY_ADDRESS), False),
        ((NO_RESERVED, NO_PROXY_RESERVED, NO_ON_LINK, NO_PROXY_ON_LINK, NO_FINAL_DROP, NO_BY_ADDRESS), True),
    ],
    ids=["whole", "the proxy's alone", "the guest's alone", "the proxy's by route", "the guest's by route", "none"],
)
def test_each_reserved_drop_holds_alone(lab: Lab, sabotage: tuple[Sabotage, ...], opened: bool) -> None:
    """Rows 8 and 10: the printer on the LAN and the metadata service, both in reserved ranges and in the host's own
    networks."""
    with NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest:
        mark = lab.recorder.mark()
        for address, port in ((world.PRINTER, 9100), (world.METADATA, 22)):
            assert ("echo" in guest.probe("tcp", address=address, port=port, limit=1.0).get("said", "")) == opened
        assert bool([packet for packet in lab.recorder.packets(mark) if packet.network == "lan"]) == opened


@pytest.mark.parametrize(
    ("sabotage", "opened"),
    [
        ((NO_FINAL_DROP, NO_BY_ADDRESS), False),
        ((NO_FINAL_DROP, NO_BY_ADDRESS, NO_ON_LINK), False),
        ((NO_FINAL_DROP, NO_BY_ADDRESS, NO_PROXY_ON_LINK, NO_PROXY_LOCAL), False),
        ((NO_FINAL_DROP, NO_BY_ADDRESS, NO_ON_LINK, NO_PROXY_ON_LINK), False),
        ((NO_FINAL_DROP, NO_BY_ADDRESS, NO_ON_LINK, NO_PROXY_LOCAL), False),
        ((NO_FINAL_DROP, NO_BY_ADDRESS, NO_ON_LINK, NO_PROXY_ON_LINK, NO_PROXY_LOCAL), True),
    ],
    ids=["whole", "the proxy's alone", "the guest's alone", "the proxy's local", "the proxy's set", "none"],
)
def test_the_hosts_own_ports_are_closed_twice(lab: Lab, sabotage: tuple[Sabotage, ...], opened: bool) -> None:
    """Row 10. On the gateway's address nothing of the host listens, whatever the rules say."""
    with NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest:
        places = (world.HOST_ADDRESS, guest.gateway)
        answers = [guest.probe("tcp", address=address, port=world.HOST_SERVICE_PORT, limit=1.0) for address in places]
        assert [answer.get("said") == "the host\n" for answer in answers] == [opened, False]


def test_a_port_of_the_gateway_that_is_no_service_is_closed_by_the_rules(lab: Lab) -> None:
    """Two rules: the gateway's address is reserved, and local."""
    cases: tuple[tuple[tuple[Sabotage, ...], bool], ...] = (
        ((), False),
        ((NO_RESERVED, NO_FINAL_DROP), False),
        ((NO_LOCAL, NO_FINAL_DROP), False),
        ((NO_RESERVED, NO_LOCAL, NO_FINAL_DROP), True),
    )
    for sabotage, opened in cases:
        with NamespaceGuest(lab.home, ALLOWED, sabotage=sabotage) as guest:
            with inside(guest.identity.namespace):
                listener = socket.create_server(("0.0.0.0", 2222))
            with listener:
                assert (
                    guest.probe("tcp", address=guest.gateway, port=2222, limit=1.0)["outcome"] == "connected"
                ) == opened


def test_without_the_set_first_a_name_on_another_port_is_closed(lab: Lab) -> None:
    """An address of a name with other ports opens when it is asked for, and not before."""
    with NamespaceGuest(lab.home, ALLOWED) as guest:
        assert guest.probe("tcp", address=world.GIT, port=22, limit=1.0)["outcome"] == "timeout"
        assert guest.lookup("git.test.lab")["addresses"] == [world.GIT]
        assert guest.probe("tcp", address=world.GIT, port=22)["said"] == f"echo {world.GIT}:22\n"
        assert guest.probe("tcp", address=world.GIT, port=8443, limit=1.0)["outcome"] == "timeout"
        assert guest.read_ledger(kind="dns", verdict="allow", name="git.test.lab")
        wait_until(
            lambda: guest.ledger(kind="tcp", verdict="allow", name="git.test.lab", port=22),
            "the flow is in the ledger, with its name",
        )


def test_the_owners_exception_opens_one_address_and_port(lab: Lab) -> None:
    """A LAN service is reached only where the owner and the profile both name it."""
    allow: list[dict[str, Any]] = [
        {"cidr": f"{world.PRINTER}/32", "ports": [9100]},
        {"host": "printer.test.lab", "ports": [9100]},
    ]
    with NamespaceGuest(lab.home, allow) as guest:
        assert guest.probe("tcp", address=world.PRINTER, port=9100, limit=1.0)["outcome"] == "timeout"
        assert guest.lookup("printer.test.lab")["answers"] == 0
    with NamespaceGuest(lab.home, allow, reserved=((world.PRINTER, 9100),)) as guest:
        assert guest.probe("tcp", address=world.PRINTER, port=9100)["said"] == f"echo {world.PRINTER}:9100\n"
        assert guest.lookup("printer.test.lab")["addresses"] == [world.PRINTER]
        assert guest.probe("tcp", address=world.PRINTER, port=22, limit=1.0)["outcome"] == "timeout"
        assert guest.probe("tcp", address="192.168.77.20", port=9100, limit=1.0)["outcome"] == "timeout"
    with NamespaceGuest(lab.home, ALLOWED, reserved=((world.PRINTER, 9100),)) as guest:
        assert guest.probe("tcp", address=world.PRINTER, port=9100, limit=1.0)["outcome"] == "timeout"


@pytest.mark.parametrize(
    "egress",
    [{"egress": {"allow": []}}, {"egress": {"allow": None}}, {"egress": {}}, {}],
    ids=["empty", "null", "missing list", "missing"],
)
def test_an_empty_allowlist_lets_nothing_out(lab: Lab, egress: dict[str, Any]) -> None:
    """Row 24."""
    with NamespaceGuest(lab.home, profile={"version": 1, "name": "none", "image": "none", **egress}) as guest:
        mark = lab.recorder.mark()
        assert guest.lookup("allowed.test.lab")["rcode"] == 3
        answers = guest.probe_all(
            [
                {"kind": "tls", "address": world.WEB, "port": 443, "name": "allowed.test.lab"},
                {
                    "kind": "http",
                    "address": world.WEB,
                    "port": 80,
                    "send": "GET / HTTP/1.0\r\nHost: allowed.test.lab\r\n\r\n",
                },
                {"kind": "tcp", "address": world.DATABASE, "port": 5432},
                {"kind": "udp", "address": world.EVIL, "port": 9999},
            ]
        )
        assert [answer["outcome"] for answer in answers[2:]] == ["timeout", "timeout"]
        assert answers[0]["outcome"] in ("reset", "closed")
        assert answers[1]["status"] == 403
        assert lab.recorder.packets(mark) == []


def test_a_name_list_file_decides(lab: Lab) -> None:
    """The compiled list on disk is what the proxy reads: an empty one refuses what the plan allows."""

    def empty(documents: dict[str, str]) -> None:
        documents["tls.names"] = ""

    with NamespaceGuest(lab.home, ALLOWED, sabotage=(empty,)) as guest:
        assert Path(guest.paths.guard, "tls.names").read_text() == ""
        assert guest.probe("tls", address=world.WEB, port=443, name="allowed.test.lab")["outcome"] in (
            "reset",
            "closed",
        )
