"""Credentials that never enter the guest: the guard adds them, to one host, over verified TLS. A guest that is a
namespace."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import world
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest, Sabotage, replace
from laboratory.recorder import wait_until
from laboratory.servers import APPLICATIONS

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.instance.resources.brokered_secret import BrokeredSecret
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.plan.guard_interface import BROKER_PORTS, INBOX_PORT
from ktrdr_vm.profile.request_headers import match_passed

SECRET = b"sk-lab-Zq7x9Wm2Vt4c"
HOST = "api.test.lab"
PORT = BROKER_PORTS[0]


@dataclasses.dataclass
class Seen:
    """A request as the provider got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


def read_body(request: http.server.BaseHTTPRequestHandler) -> bytes:
    """By its length, or in chunks."""
    body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    if request.headers.get("Transfer-Encoding") == "chunked":
        while size := int(request.rfile.readline(), 16):
            body += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    return body


class Provider:
    """Of a model provider's shape: a JSON answer, a redirect elsewhere, and an answer that shows the key in a
    header."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = read_body(request)
        self.seen.append(Seen(request.command, request.path, list(request.headers.items()), body))
        answer = json.dumps({"type": "message", "content": [{"type": "text", "text": "hello"}]}).encode()
        request.send_response(302 if request.path == "/v1/elsewhere" else 200)
        if request.path == "/v1/elsewhere":
            request.send_header("Location", "https://evil.test.lab/take")
        if request.path == "/v1/echo":
            for name in ("X-Api-Key", "X_API_KEY"):
                request.send_header(name, request.headers.get("x-api-key", ""))
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)


@pytest.fixture
def provider(lab: Lab) -> Iterator[Provider]:
    made = APPLICATIONS[HOST] = Provider()
    yield made
    del APPLICATIONS[HOST]
    lab.world.reset_zone()


def trust_lab(lab: Lab) -> Sabotage:
    """The lab's authority stands for the host's."""
    lab.home.create()
    path = lab.home.root / "authority.pem"
    path.write_text(lab.world.authority.pem)
    path.chmod(0o644)
    return replace("proxy.cfg", "ca-file @system-ca", f"ca-file {path}")


def open_guest(
    lab: Lab, *sabotage: Sabotage, trusted: bool = True, mode: str = "sandbox", **broker: Any
) -> NamespaceGuest:
    entry = {
        "host": HOST,
        "header": "x-api-key: {{ secret }}",
        "base_url_env": "API_URL",
        "methods": ["GET", "POST"],
        "paths": ["/v1/"],
    }
    profile = {
        "version": 1,
        "name": "net",
        "image": "none",
        "mode": mode,
        "gates": ["startability"],
        "secrets": [{"name": "model-key", "source": {"env": "KTRDR_KEY"}, "broker": entry | broker}],
    }
    return NamespaceGuest(lab.home, profile=profile, sabotage=((trust_lab(lab),) if trusted else ()) + sabotage)


def give(guest: NamespaceGuest, value: bytes = SECRET) -> BrokeredSecret:
    """As `apply`, `resume` and `secrets rotate` do."""
    blueprint = dataclasses.replace(guest.guard.blueprint, read_secret=lambda _: value)
    secret = BrokeredSecret(guest.guard.target, blueprint, guest.plan.profile.secrets[0])
    secret.create()
    assert secret.verify() == []
    return secret


def ask(
    guest: NamespaceGuest,
    target: str = "/v1/messages",
    method: str = "GET",
    *lines: str,
    host: str = "",
    body: str = "",
) -> dict[str, Any]:
    """One request at the gateway, byte for byte; the connection ends with it."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {host or f'{guest.gateway}:{PORT}'}", "Connection: close", *lines]
    return guest.probe("http", address=guest.gateway, port=PORT, send="\r\n".join(head) + "\r\n\r\n" + body)


def test_a_providers_client_works_and_never_has_the_key(lab: Lab, provider: Provider) -> None:
    with open_guest(lab) as guest:
        mark = lab.recorder.mark()
        give(guest)
        url = guest.plan.gateway_variables(guest.gateway)
        assert url == {"API_URL": f"http://{guest.gateway}:{PORT}"}
        body = '{"model":"m"}'
        answer = ask(guest, "/v1/messages?beta=true", "POST", f"Content-Length: {len(body)}", body=body)
        assert answer["status"] == 200 and '"text": "hello"' in answer["said"]
        # Its own attempts at the header, in every form that a server may take for it, and at other credentials.
        forged = (
            "X-API-KEY: mine",
            "x_api_key: mine",
            "x-api-key: ",
            "Authorization: Bearer mine",
            "Cookie: a=mine",
            "X-HTTP-Method-Override: DELETE",
        )
        assert ask(guest, "/v1/messages", "GET", *forged, f"Host: {guest.gateway}:{PORT}")["status"] == 200
        echoed = ask(guest, "/v1/echo")
        assert echoed["status"] == 200
        for said in (answer, echoed):
            assert SECRET.decode() not in said["said"] and "x-api-key" not in said["said"].lower().replace("_", "-")
        assert [(one.method, one.target, one.body) for one in provider.seen] == [
            ("POST", "/v1/messages?beta=true", body.encode()), ("GET", "/v1/messages", b""), ("GET", "/v1/echo", b""),
        ]  # fmt: skip
        for one in provider.seen:
            assert one.values("x-api-key") == [SECRET.decode()]
            assert one.values("host") == [HOST]  # also where the guest sent two equal ones
            assert not any("mine" in value or "DELETE" in value for _, value in one.headers)
        # It went there with its name in the hello, and nowhere else.
        assert {hit.name for hit in lab.recorder.hits(mark, "tls")} == {HOST}
        wait_until(lambda: len(guest.ledger(kind="broker", verdict="allow")) == 3, "each request is a line")
        line = guest.read_ledger(kind="broker", verdict="allow")[0]
        assert {key: line[key] for key in ("name", "address", "port", "rule", "method", "path", "status")} == {
            "name": HOST, "address": world.OTHER, "port": 443, "rule": "model-key", "method": "POST", "path": "/v1/messages", "status": 200,
        }  # fmt: skip
        assert line["bytes_out"] > 0 and line["bytes_in"] > 0
        # Neither in a file of the instance, nor in an argument or an environment of what serves it; those are its
        # user's and root's only.
        for path in [path for path in guest.paths.directory.rglob("*") if path.is_file()]:
            assert SECRET not in path.read_bytes(), path
        pids = find_guards(guest.paths.guard)
        assert len(pids) >= 2
        for pid in pids:
            for place in ("environ", "cmdline"):
                assert SECRET not in Path(f"/proc/{pid}/{place}").read_bytes()
            assert Path(f"/proc/{pid}/environ").stat().st_mode & 0o777 == 0o400
            assert "Max core file size        0                    0" in Path(f"/proc/{pid}/limits").read_text()


TAKEN_OUT = [
    "X-Api-Key", "x_api_key", "Authorization", "Proxy-Authorization", "Cookie", "Api-Key", "X-Auth-Token", "Private-Token", "X-Amz-Security-Token",
    "X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Original-Method", "X-Envoy-Original-Path",
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP",
    "X-Host", "Via", "Max-Forwards", "TE", "Trailer", "Destination", "OpenAI-Organization", "X-Goog-User-Project", "X-Anything", "content_type",
    "user_agent", "accept_", "accept-",
]  # fmt: skip
GOES_ON = [
    "Accept",
    "Accept-Language",
    "Content-Type",
    "If-None-Match",
    "Range",
    "User-Agent",
    "anthropic-version",
    "X-Stainless-OS",
    "Git-Protocol",
    "traceparent",
]


@pytest.mark.parametrize("more", [{}, {"headers": ["X-Tenant"]}], ids=["usual", "one more"])
def test_of_the_guests_headers_the_usual_ones_go_on(lab: Lab, provider: Provider, more: dict[str, Any]) -> None:
    with open_guest(lab, **more) as guest:
        give(guest)
        # In two requests: a client with all of them is past the limit of the lab's server.
        for names in (TAKEN_OUT, [*GOES_ON, "X-Tenant"]):
            assert (
                ask(guest, "/v1/messages", "GET", *(f"{name}: mine-{number}" for number, name in enumerate(names)))[
                    "status"
                ]
                == 200
            )
        taken, passed = (
            {name.lower() for name, value in one.headers if value.startswith("mine-")} for one in provider.seen
        )
        assert taken == set()
        assert passed == {name.lower() for name in GOES_ON} | ({"x-tenant"} if more else set())


REFUSED = [
    ("/v1/../admin", "GET", 403), ("/v1/%2e%2e/admin", "GET", 403), ("/v1/.%2E/admin", "GET", 403), ("/v1/a%2fb", "GET", 403),
    ("/v1/a%5cb", "GET", 403), ("/v1/%252e%252e/admin", "GET", 403), ("/v1/..;/admin", "GET", 403), ("/v1/..%3B/admin", "GET", 403),
    ("/v1/a%00b", "GET", 403), ("/v1/a'b", "GET", 403), ("/v1/a|b", "GET", 403), ("/v1/é", "GET", 400), ("/v1/#/../admin", "GET", 400),
    ("/v1/.", "GET", 403), ("/v1//admin", "GET", 403), ("//evil.test.lab/v1/", "GET", 403), ("/v1/a\\b", "GET", 403), ("/v1/%zz", "GET", 403),
    ("/admin", "GET", 403), ("/v1", "GET", 403), ("/v10/x", "GET", 403), ("/V1/x", "GET", 403), ("*", "GET", 403),
    ("/v1/messages", "DELETE", 403), ("/v1/messages", "PUT", 403), ("/v1/messages", "TRACE", 403), ("/v1/messages", "get", 403),
    ("http://evil.test.lab/v1/messages", "GET", 403), (f"https://{HOST}/v1/messages", "GET", 403), ("evil.test.lab:443", "CONNECT", 403),
]  # fmt: skip


def test_what_is_not_plainly_allowed_is_refused(lab: Lab, provider: Provider) -> None:
    with open_guest(lab) as guest:
        give(guest)
        mark = lab.recorder.mark()
        for target, method, status in REFUSED:
            assert ask(guest, target, method)["status"] in (status, 400), (method, target)
        for host in ("evil.test.lab", HOST, guest.gateway, f"{guest.gateway}:{PORT}, evil.test.lab"):
            assert ask(guest, host=host)["status"] in (400, 403), host
        assert ask(guest, "/v1/messages", "GET", "Host: evil.test.lab")["status"] in (400, 403)
        assert ask(guest, "/v1/messages", "GET", "Upgrade: websocket")["status"] == 403
        assert provider.seen == []
        assert lab.recorder.hits(mark, "tls") == []
        # The guest may know the name, and still not go there itself.
        assert guest.lookup(HOST)["addresses"] == [world.OTHER]
        assert guest.probe("tls", address=world.OTHER, port=443, name=HOST)["outcome"] in ("reset", "closed")
        assert ask(guest, "/v1/a%27b?x=/../'")["status"] == 200
        denied = guest.ledger(kind="broker", verdict="deny")
        assert {"refused by path", "refused by method", "refused by request"} <= {row["message"] for row in denied}
        assert any(row["path"] == "/v1/../admin" and row["status"] == 403 for row in denied)


def test_framing_in_two_ways_does_not_pass(lab: Lab, provider: Provider) -> None:
    """What the proxy cannot read in one way only is refused; what it can, it frames anew, and what follows is judged as
    a request."""
    inner = f"GET /admin HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    two_ways = (
        ("Content-Length: 5", "Content-Length: 6"), ("Content-Length: 5, 6",), ("Content-Length: +5",), ("Content-Length: 5 5",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: gzip, chunked",), ("Transfer-Encoding : chunked",), ("Transfer-Encoding:\x0bchunked",),
    )  # fmt: skip
    with open_guest(lab) as guest:
        give(guest)
        for lines in two_ways:
            assert ask(guest, "/v1/messages", "POST", *lines, body="0\r\n\r\n" + inner)["status"] in (400, 403, 422), (
                lines
            )
        assert provider.seen == []
        ask(guest, "/v1/messages", "POST", "Content-Length: 4", "Transfer-Encoding: chunked", body="0\r\n\r\n" + inner)
        assert ask(guest, "/v1/messages", "POST", "Content-Length: 5", "Content-Length: 5", body="hello" + inner)[
            "status"
        ] in (200, 400)
        # What follows a body in chunks is no header.
        late = "3\r\nabc\r\n0\r\nAuthorization: mine\r\nX-Api-Key: mine\r\n\r\n"
        assert ask(guest, "/v1/messages", "POST", "Transfer-Encoding: chunked", body=late)["status"] == 200
        assert provider.seen[-1].values("x-api-key") == [SECRET.decode()] and provider.seen[-1].body == b"abc"
        for one in provider.seen:
            assert one.target == "/v1/messages" and b"admin" not in one.body and not one.values("authorization")
            assert len(one.values("content-length")) + len(one.values("transfer-encoding")) == 1


def test_a_redirect_is_passed_back_and_never_followed(lab: Lab, provider: Provider) -> None:
    with open_guest(lab) as guest:
        give(guest)
        mark = lab.recorder.mark()
        answer = ask(guest, "/v1/elsewhere")
        assert answer["status"] == 302 and "location: https://evil.test.lab/take" in answer["said"].lower()
        assert {hit.name for hit in lab.recorder.hits(mark, "tls")} == {HOST}


def test_nothing_goes_out_before_the_gate(lab: Lab, provider: Provider) -> None:
    with open_guest(lab, after="startability") as guest:
        give(guest)
        refused = ask(guest)
        assert refused["status"] == 403 and "before the gate startability has passed" in refused["said"]
        GuardClient(guest.paths.guard).pass_gate("unit")
        assert ask(guest)["status"] == 403 and provider.seen == []
        GuardClient(guest.paths.guard).pass_gate("startability")
        wait_until(lambda: ask(guest)["status"] == 200, "the gate has passed")
        assert len(provider.seen) == 1
        # Another run of the same instance.
        GuardClient(guest.paths.guard).begin_gates()
        wait_until(lambda: ask(guest)["status"] == 403, "in this run it has not passed")
        GuardClient(guest.paths.guard).pass_gate("startability")
        wait_until(lambda: ask(guest)["status"] == 200, "it has passed again")


def test_a_proxy_and_a_guard_that_begin_again(lab: Lab, provider: Provider) -> None:
    """The proxy is told again by the guard. A new guard knows nothing: it refuses, says why, and takes the secret
    again."""
    with open_guest(lab) as guest:
        assert ask(guest)["status"] == 503
        secret = give(guest)
        assert ask(guest)["status"] == 200
        os.kill(int(GuardClient(guest.paths.guard).status()["proxy"]), signal.SIGKILL)
        wait_until(lambda: ask(guest, "/v1/again").get("status") == 200, "the guard has told it again")
        guest.guard.stop()
        guest.guard.create()
        assert not secret.exists()
        wait_until(lambda: ask(guest).get("status") == 503, "a new guard has no secret")
        assert "does not hold model-key" in ask(guest)["said"]
        give(guest, b"another-key-0815\n")
        assert ask(guest)["status"] == 200
        assert provider.seen[-1].values("x-api-key") == ["another-key-0815"]
        secret.remove()
        assert not secret.exists() and ask(guest)["status"] == 503


def holds(pid: int, needle: bytes) -> bool:
    """Is it anywhere in the memory of this process that can be written?"""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            begin, end = (int(one, 16) for one in place.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError):
                    memory.seek(begin)
                    if needle in memory.read(end - begin):
                        return True
    return False


def test_what_reads_the_guests_bytes_does_not_have_it_also_when_it_was_started_again(
    lab: Lab, provider: Provider
) -> None:
    """A fork of the guard after the secret was given has the guard's memory, and the secret: seen so before they were
    programs."""
    with open_guest(lab, mode="interactive") as guest:
        give(guest)
        before = GuardClient(guest.paths.guard).status()
        # The one that must have it, so that the search can find something.
        assert holds(before["pid"], SECRET) and not holds(before["resolver"], SECRET)
        [inbox] = [pid for pid in find_guards(guest.paths.guard) if pid not in before.values()]
        os.kill(int(before["resolver"]), signal.SIGKILL)
        os.kill(inbox, signal.SIGKILL)
        wait_until(lambda: guest.lookup("nobody.test.lab").get("rcode") == 3, "names are answered again", 30)
        listed = "GET /v1/escalations HTTP/1.0\r\n\r\n"
        asked = {"address": guest.gateway, "port": INBOX_PORT, "send": listed}
        wait_until(lambda: guest.probe("http", **asked).get("status") == 200, "the inbox answers again", 30)
        after = set(find_guards(guest.paths.guard)) - {before["pid"], before["proxy"]}
        assert len(after) == 2 and not after & {before["resolver"], inbox}
        assert [pid for pid in after if holds(pid, SECRET)] == []
        # And they are what they were: nobody, and with the guard's own life.
        users = {Path(f"/proc/{pid}/status").read_text().partition("Uid:\t")[2].split()[0] for pid in after}
        assert users == {guest.allocation.resolver_uid, guest.allocation.inbox_uid}
        assert ask(guest)["status"] == 200


def test_without_a_certificate_of_its_own_no_byte_is_sent(lab: Lab, provider: Provider) -> None:
    """An authority that the host does not know, and a name that the certificate does not have. Without the check it
    gets the key."""
    with open_guest(lab, trusted=False) as guest:
        give(guest)
        answer = ask(guest)
        assert answer["status"] == 502 and "certificate" in answer["said"]
    lab.world.dns.zone["uncertified.test.lab"] = [("A", world.OTHER)]
    APPLICATIONS["uncertified.test.lab"] = provider
    loose = replace("proxy.cfg", "verifyhost uncertified.test.lab", "")
    blind = replace("proxy.cfg", "sni str(uncertified.test.lab)", "sni str(allowed.test.lab)")
    try:
        for sabotage, status in (((), 502), ((loose,), 502), ((loose, blind), 200)):
            with open_guest(lab, *sabotage, host="uncertified.test.lab") as guest:
                give(guest)
                assert ask(guest)["status"] == status
                assert len(provider.seen) == (status == 200)
    finally:
        del APPLICATIONS["uncertified.test.lab"]


def test_a_name_in_a_reserved_range_is_not_dialled(lab: Lab, provider: Provider) -> None:
    mark = lab.recorder.mark()
    for host in ("printer.test.lab", "metadata.test.lab", "loopback.test.lab"):
        with open_guest(lab, host=host) as guest:
            give(guest)
            answer = ask(guest)
            assert answer["status"] == 502 and "no address that may be reached" in answer["said"]
    assert [packet for packet in lab.recorder.packets(mark) if packet.network == "lan"] == []


@pytest.mark.parametrize(
    ("line", "target", "method", "lines"),
    [
        (" if !origin_form or !plain_path or hidden_path or dotted_path or empty_segment", "/v1/../admin", "GET", ()),
        (" unless allowed_path", "/admin", "GET", ()),
        (" unless { method GET POST }", "/v1/messages", "DELETE", ()),
        (" unless one_host own_host", "/v1/messages", "GET", ("Host: evil.test.lab",)),
        (f"    http-request del-header '{match_passed(())}' -m reg\n", "/v1/messages", "GET", ("Authorization: mine",)),
    ],
    ids=["path", "prefix", "method", "host", "credential"],
)
def test_without_its_line_each_protection_fails(
    lab: Lab, provider: Provider, line: str, target: str, method: str, lines: tuple[str, ...]
) -> None:
    """The same request, with the line taken out, arrives with the key."""
    with open_guest(lab, replace("proxy.cfg", line, "" if line.endswith("\n") else " if FALSE")) as guest:
        give(guest)
        host = "evil.test.lab" if "Host: evil.test.lab" in lines else ""
        assert (
            ask(guest, target, method, *(one for one in lines if not one.startswith("Host")), host=host)["status"]
            == 200
        )
        [one] = provider.seen
        assert (one.target, one.method, one.values("x-api-key")) == (target, method, [SECRET.decode()])
        assert one.values("authorization") == [
            value.removeprefix("Authorization: ") for value in lines if value.startswith("Auth")
        ]
