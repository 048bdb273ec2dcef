"""Rules by method and path, without a secret: "may read this API, not write to it". A guest that is a namespace."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest, Sabotage, replace
from laboratory.recorder import wait_until
from laboratory.servers import APPLICATIONS
from test_egress_broker import HOST, PORT, REFUSED, Provider, ask, trust_lab

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.instance.resources.brokered_secret import BrokeredSecret
from ktrdr_vm.profile.request_headers import match_passed

READ = {"host": HOST, "methods": ["GET", "HEAD"], "paths": ["/v1/"], "base_url_env": "API_URL"}


@pytest.fixture
def provider(lab: Lab) -> Iterator[Provider]:
    made = APPLICATIONS[HOST] = Provider()
    yield made
    del APPLICATIONS[HOST]
    lab.world.reset_zone()


def open_guest(
    lab: Lab, *sabotage: Sabotage, rules: tuple[dict[str, Any], ...] = (READ,), **more: Any
) -> NamespaceGuest:
    profile = {"version": 1, "name": "net", "image": "none", "egress": {"allow": list(rules)}, **more}
    return NamespaceGuest(lab.home, profile=profile, sabotage=(trust_lab(lab), *sabotage))


def test_it_may_read_and_not_write_and_each_decision_is_a_line(lab: Lab, provider: Provider) -> None:
    with open_guest(lab) as guest:
        assert guest.plan.gateway_variables(guest.gateway) == {"API_URL": f"http://{guest.gateway}:{PORT}"}
        mark = lab.recorder.mark()
        read = ask(
            guest, "/v1/messages?page=2", "GET", "Accept: application/json", "Authorization: mine", "Cookie: mine"
        )
        assert read["status"] == 200 and '"text": "hello"' in read["said"]
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            refused = ask(guest, "/v1/messages", method, "Content-Length: 2", body="{}")
            assert refused["status"] == 403 and f"{HOST} is allowed with GET, HEAD only" in refused["said"], refused
        assert "not allowed for this path" in ask(guest, "/admin")["said"]
        [one] = provider.seen
        assert (one.method, one.target, one.values("host")) == ("GET", "/v1/messages?page=2", [HOST])
        assert (
            one.values("accept") == ["application/json"]
            and not one.values("authorization")
            and not one.values("cookie")
        )
        assert {hit.name for hit in lab.recorder.hits(mark, "tls")} == {HOST}
        wait_until(lambda: len(guest.ledger(kind="broker")) == 7, "each request is a line")
        rows = guest.read_ledger(kind="broker")
        assert {row["rule"] for row in rows} == {"url:API_URL"} and {row["name"] for row in rows} == {HOST}
        assert [(row["verdict"], row["method"], row["path"], row["status"]) for row in rows[:2]] == [
            ("allow", "GET", "/v1/messages", 200), ("deny", "POST", "/v1/messages", 403),
        ]  # fmt: skip
        assert rows[1]["message"] == "refused by method" and rows[-1]["message"] == "refused by path"


def test_every_other_way_to_the_host_is_closed(lab: Lab, provider: Provider) -> None:
    """The paths and forms that a brokered secret is tried with, and the host itself, on every port."""
    with open_guest(lab) as guest:
        mark = lab.recorder.mark()
        for target, method, status in REFUSED:
            assert ask(guest, target, method)["status"] in (status, 400), (method, target)
        for host in (
            "evil.test.lab",
            HOST,
            guest.gateway,
            f"{guest.gateway}:{PORT}, evil.test.lab",
            f"{guest.gateway}:{PORT + 1}",
        ):
            assert ask(guest, host=host)["status"] in (400, 403), host
        assert ask(guest, "/v1/messages", "GET", "Host: evil.test.lab")["status"] in (400, 403)
        assert ask(guest, "/v1/messages", "GET", "Upgrade: websocket", "Connection: upgrade")["status"] in (400, 403)
        assert provider.seen == [] and lab.recorder.hits(mark, "tls") == []
        assert guest.lookup(HOST)["addresses"] == [world.OTHER]
        assert guest.probe("tls", address=world.OTHER, port=443, name=HOST)["outcome"] in ("reset", "closed")
        request = f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        assert guest.probe("http", address=world.OTHER, port=80, send=request).get("status") == 403
        assert provider.seen == [] and lab.recorder.hits(mark, "http") == []


OVERRIDES = (
    "X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE", "x_http_method_override: DELETE",
    "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-Envoy-Original-Path: /admin", "X-Forwarded-Host: evil.test.lab",
    "X-Forwarded-Prefix: /admin", "X-Original-Method: DELETE", "Forwarded: host=evil.test.lab", "X-Host: evil.test.lab",
)  # fmt: skip


def test_no_header_makes_another_request_of_it(lab: Lab, provider: Provider) -> None:
    with open_guest(lab) as guest:
        assert ask(guest, "/v1/messages", "GET", *OVERRIDES)["status"] == 200
        [one] = provider.seen
        assert (one.method, one.target) == ("GET", "/v1/messages")
        assert not [value for _, value in one.headers if value in ("DELETE", "/admin") or "evil" in value]


def test_an_offer_to_upgrade_is_taken_out(lab: Lab, provider: Provider) -> None:
    """As Java's HttpClient sends it with every request over plain HTTP."""
    with open_guest(lab) as guest:
        for offer in ("Upgrade: h2c", "Upgrade: TLS/1.2, h2c", "Upgrade: h2c\r\nUpgrade: x"):
            lines = (offer, "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAA")
            assert ask(guest, "/v1/messages", "GET", *lines)["status"] == 200
        names = {name.lower() for one in provider.seen for name, _ in one.headers}
        assert len(provider.seen) == 3 and names & {"upgrade", "http2-settings"} == set()


def test_a_second_request_in_the_body_is_judged_as_well(lab: Lab, provider: Provider) -> None:
    inner = f"DELETE /v1/messages HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    with open_guest(lab) as guest:
        for lines in (
            ("Content-Length: 5", "Content-Length: 6"),
            ("Transfer-Encoding: xchunked",),
            ("Content-Length: +5",),
        ):
            assert ask(guest, "/v1/messages", "GET", *lines, body="0\r\n\r\n" + inner)["status"] in (400, 403, 422), (
                lines
            )
        ask(guest, "/v1/messages", "GET", "Content-Length: 4", "Transfer-Encoding: chunked", body="0\r\n\r\n" + inner)
        ask(guest, "/v1/messages", "GET", "Content-Length: 0", body=inner)
        assert {one.method for one in provider.seen} <= {"GET"} and not any(
            b"DELETE" in one.body for one in provider.seen
        )


def test_two_rules_for_a_host_are_two_urls(lab: Lab, provider: Provider) -> None:
    write = {"host": HOST, "methods": ["POST"], "paths": ["/v1/comments"], "base_url_env": "COMMENTS_URL"}
    with open_guest(lab, rules=(READ, write)) as guest:
        second = {"host": f"{guest.gateway}:{PORT + 1}"}
        ports = {READ["base_url_env"]: PORT, "COMMENTS_URL": PORT + 1}
        assert guest.plan.gateway_variables(guest.gateway) == {
            name: f"http://{guest.gateway}:{port}" for name, port in ports.items()
        }

        def post(target: str) -> int:
            lines = [f"POST {target} HTTP/1.1", f"Host: {second['host']}", "Connection: close", "Content-Length: 2"]
            said = guest.probe("http", address=guest.gateway, port=PORT + 1, send="\r\n".join(lines) + "\r\n\r\n{}")
            return int(said["status"])

        assert [post(target) for target in ("/v1/comments", "/v1/comments/1", "/v1/commentsx", "/v1/messages")] == [
            200,
            200,
            403,
            403,
        ]
        # The URL of the one is not that of the other.
        assert ask(guest, "/v1/comments", "POST", "Content-Length: 2", body="{}")["status"] == 403
        assert ask(guest, host=second["host"])["status"] == 403
        assert [one.target for one in provider.seen] == ["/v1/comments", "/v1/comments/1"]


def test_beside_a_brokered_secret_neither_has_what_is_the_others(lab: Lab, provider: Provider) -> None:
    broker = {
        "host": HOST,
        "header": "x-api-key: {{ secret }}",
        "base_url_env": "KEY_URL",
        "methods": ["POST"],
        "paths": ["/v1/"],
    }
    secret = {"name": "model-key", "source": {"env": "KTRDR_KEY"}, "broker": broker}
    with open_guest(lab, secrets=[secret]) as guest:
        blueprint = dataclasses.replace(guest.guard.blueprint, read_secret=lambda _: b"sk-lab-0815")
        BrokeredSecret(guest.guard.target, blueprint, guest.plan.profile.secrets[0]).create()
        assert ask(guest, "/v1/messages", "POST", "Content-Length: 2", body="{}")["status"] == 200
        lines = ["GET /v1/messages HTTP/1.1", f"Host: {guest.gateway}:{PORT + 1}", "Connection: close"]
        assert (
            guest.probe("http", address=guest.gateway, port=PORT + 1, send="\r\n".join(lines) + "\r\n\r\n")["status"]
            == 200
        )
        assert [(one.method, one.values("x-api-key")) for one in provider.seen] == [
            ("POST", ["sk-lab-0815"]),
            ("GET", []),
        ]


def test_a_proxy_and_a_guard_that_begin_again_serve_it_at_once(lab: Lab, provider: Provider) -> None:
    with open_guest(lab) as guest:
        assert ask(guest)["status"] == 200
        os.kill(int(GuardClient(guest.paths.guard).status()["proxy"]), signal.SIGKILL)
        wait_until(lambda: ask(guest, "/v1/again").get("status") == 200, "the proxy serves again")
        guest.guard.stop()
        guest.guard.create()
        wait_until(lambda: ask(guest).get("status") == 200, "so does that of a new guard")
        assert ask(guest, "/v1/messages", "DELETE")["status"] == 403
        assert not GuardClient(guest.paths.guard).list_credentials().held


def test_a_reserved_address_and_a_foreign_certificate_get_nothing(lab: Lab, provider: Provider) -> None:
    mark = lab.recorder.mark()
    for host in ("printer.test.lab", "metadata.test.lab", "loopback.test.lab"):
        with open_guest(lab, rules=({**READ, "host": host},)) as guest:
            answer = ask(guest)
            assert answer["status"] == 502 and "no address that may be reached" in answer["said"]
    assert [packet for packet in lab.recorder.packets(mark) if packet.network == "lan"] == []
    lab.world.dns.zone["uncertified.test.lab"] = [("A", world.OTHER)]
    APPLICATIONS["uncertified.test.lab"] = provider
    try:
        with open_guest(lab, rules=({**READ, "host": "uncertified.test.lab"},)) as guest:
            assert ask(guest)["status"] == 502 and provider.seen == []
    finally:
        del APPLICATIONS["uncertified.test.lab"]


@pytest.mark.parametrize(
    ("line", "target", "method", "lines"),
    [
        (" if !origin_form or !plain_path or hidden_path or dotted_path or empty_segment", "/v1/../admin", "GET", ()),
        (" unless allowed_path", "/admin", "GET", ()),
        (" unless { method GET HEAD }", "/v1/messages", "DELETE", ()),
        (" unless one_host own_host", "/v1/messages", "GET", ("Host: evil.test.lab",)),
        (f"    http-request del-header '{match_passed(())}' -m reg\n", "/v1/messages", "GET", (OVERRIDES[0],)),
    ],
    ids=["path", "prefix", "method", "host", "override"],
)
def test_without_its_line_each_protection_fails(
    lab: Lab, provider: Provider, line: str, target: str, method: str, lines: tuple[str, ...]
) -> None:
    with open_guest(lab, replace("proxy.cfg", line, "" if line.endswith("\n") else " if FALSE")) as guest:
        host = "evil.test.lab" if "Host: evil.test.lab" in lines else ""
        assert (
            ask(guest, target, method, *(one for one in lines if not one.startswith("Host")), host=host)["status"]
            == 200
        )
        [one] = provider.seen
        assert (one.target, one.method) == (target, method)
        assert bool(one.values("x-http-method-override")) == (OVERRIDES[0] in lines)
