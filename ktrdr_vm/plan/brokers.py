"""The proxy configuration for requests by method and path: plain HTTP at the gateway, verified TLS to one host.

A route of a brokered secret adds the header with its value; one of a rule of the allowlist adds none.

The values are in no file and in no environment. The guard writes them into two maps of the running process, whose files
stay empty: without its value a route answers 503, before its gate 403. Each request is logged as a line of JSON, in the
format of `haproxy`: `k` is the name of the secret or `url:` and the variable of the rule, `q` the path without the
query.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ktrdr_vm.plan.guard_interface import BROKER_PORTS, OPEN, VALUES
from ktrdr_vm.profile.model import Broker, Profile
from ktrdr_vm.profile.request_headers import match_passed
from ktrdr_vm.profile.requests import Requests
from ktrdr_vm.profile.scalars import MAX_HEADER

# The CA folder of OpenSSL on the host.
_AUTHORITIES = "@system-ca"
_LETTERS = "[A-Za-z0-9._~!$&()*+,;=:@/-]"

_FIELDS = (
    '"a":"%[var(txn.address)]","p":443,"u":%U,"d":%B,"t":"%ts","v":"%[var(txn.verdict)]",'
    '"m":%Ta,"w":"%[var(txn.method),json(utf8ps)]","s":%ST,"q":"%[var(txn.path),json(utf8ps)]"'
)
# A server that switches protocols without an offer would get a tunnel, whose further requests nobody checks.
NO_SWITCH = "http-response deny if { status 101 }"


@dataclass(frozen=True)
class Route:
    """Requests that the proxy forwards, and the port of the gateway for their host. `secret` is empty if no secret is
    added to them."""

    secret: str
    port: int
    requests: Requests

    @property
    def after(self) -> str:
        """The gate that must have passed before, if any."""
        return self.requests.after if isinstance(self.requests, Broker) else ""

    @property
    def name(self) -> str:
        """The rule in the ledger. No name of a secret contains a colon."""
        return self.secret or f"url:{self.requests.base_url_env}"

    @property
    def shown(self) -> str:
        """The name in refusals."""
        return self.secret or self.requests.host

    def base_url(self, gateway: str) -> str:
        """The URL for the guest, without a credential."""
        path = "" if self.requests.base_path == "/" else self.requests.base_path
        return f"http://{gateway}:{self.port}{path}"


def make_routes(profile: Profile) -> tuple[Route, ...]:
    """One port each: first the brokered secrets, then the rules, in the order of the profile."""
    wanted: list[tuple[str, Requests]] = [*((secret.name, broker) for secret, broker in profile.brokered)]
    wanted += [("", requests) for requests in profile.limited]
    return tuple(Route(name, port, requests) for port, (name, requests) in zip(BROKER_PORTS, wanted, strict=False))


def render_routes(routes: tuple[Route, ...], gateway: str, lists: str) -> str:
    """Their frontends and backends. `lists` is the folder of the guard with the two maps."""
    return "".join(_render(route, gateway, lists) for route in routes)


def render_limits(routes: tuple[Route, ...]) -> str:
    """Settings that reserve space in a request for the added header."""
    return f"\n    tune.maxrewrite {MAX_HEADER + 1024}" if routes else ""


def render_offers(deny: str) -> str:
    """The rules for Upgrade, whose offers a server may ignore (RFC 9110, 7.8). The caller removes the header.

    A request that offers a WebSocket alone ends in `deny`, because its client cannot use another response.
    """
    return f"""\
    # Common clients offer h2c or TLS with any request and do not need them. `hdr` reads each offer of each header.
    acl websocket req.hdr(upgrade) -m str -i websocket
    acl further_offer req.hdr(upgrade) -m reg -i '^(?!websocket$).'
    {deny} if websocket !further_offer"""


def _render(route: Route, gateway: str, lists: str) -> str:
    requests, name, host = route.requests, route.name, route.requests.host
    methods = " ".join(requests.methods)
    verified = f"ssl verify required ca-file {_AUTHORITIES} sni str({host}) verifyhost {host} ssl-min-ver TLSv1.2"
    title = (
        f"The secret {name}, which is sent to {host} only."
        if route.secret
        else f"Requests to {host}, without a secret."
    )
    return f"""
# {title}
frontend broker_{route.port}
    mode http
    bind "fd@${{KTRDR_FD_BROKER_{route.port}}}"
    option disable-h2-upgrade
    option http-no-delay
    log-format '{{"f":"broker","k":"{name}","n":"{host}",{_FIELDS}}}'
    http-error status 503 content-type text/plain string "ktrdr-vm: {host} does not answer, or its certificate is not valid\\n"
    http-request set-var(txn.method) method,bytes(0,20)
    http-request set-var(txn.path) path,bytes(0,400)
    http-request set-var(txn.verdict) str(request)
    acl own_host req.fhdr(host) -m str -i {gateway}:{route.port}
    acl one_host req.fhdr_cnt(host) eq 1
    {_deny(403, f"refused, the Host must be {gateway}:{route.port}")} unless one_host own_host
{render_offers(_deny(403, "refused, WebSockets are not forwarded"))}
    http-request set-var(txn.verdict) str(method)
    {_deny(403, f"refused, {route.shown} is allowed with {', '.join(requests.methods)} only")} unless {{ method {methods} }}
    # Paths that the server could interpret differently are refused.
    http-request set-var(txn.verdict) str(path)
    acl plain_path path -m reg '^/({_LETTERS}|%[0-9A-Fa-f][0-9A-Fa-f])*$'
    acl origin_form url -m beg /
    acl hidden_path path -m reg -i '%(2e|2f|5c|25|3b|00)'
    acl dotted_path path -m reg '/[.][.]?(;[^/]*)?(/|$)'
    acl empty_segment path -m sub //
    {_deny(403, "refused, the path is ambiguous")} if !origin_form or !plain_path or hidden_path or dotted_path or empty_segment
{_acl_paths(requests.paths)}
    {_deny(403, f"refused, {route.shown} is not allowed for this path")} unless allowed_path
{_gate(route, lists)}{_find_value(route, lists)}    http-request set-var(txn.verdict) str(address)
    http-request do-resolve(txn.address,guard,ipv4) str({host})
    {_deny(502, f"{host} has no address that may be reached")} unless {{ var(txn.address) -m found }}
    http-request set-dst var(txn.address)
    # Other headers could change the identity under which the server acts, and its method, path and host.
    http-request del-header '{match_passed(requests.headers)}' -m reg
    http-request set-header host {host}
{_add_value(route)}    http-request set-var(txn.verdict) str(allow)
    acl no_answer status 503
    acl sent var(txn.verdict) -m str allow
    http-after-response set-status 502 reason "Bad Gateway" if no_answer sent !{{ var(txn.answered) -m found }}
    default_backend broker_{route.port}

backend broker_{route.port}
    mode http
    http-reuse never
    {NO_SWITCH}
    http-response set-var(txn.answered) bool(true)
{_remove_value(route)}    server upstream 0.0.0.0:443 {verified}
"""


def _find_value(route: Route, lists: str) -> str:
    if not route.secret:
        return ""
    return (
        "    http-request set-var(txn.verdict) str(no-secret)\n"
        f"    http-request set-var(txn.value) str({route.secret}),map_str({lists}/{VALUES})\n"
        f"    {_deny(503, f'the guard does not hold {route.secret}; `ktrdr-vm secrets rotate` delivers it again')}"
        " unless { var(txn.value) -m found }\n"
    )


def _add_value(route: Route) -> str:
    if not isinstance(route.requests, Broker):
        return ""
    return (
        f'    http-request set-header {route.requests.header.name} "%[var(txn.value)]"\n    http-request'
        " unset-var(txn.value)\n"
    )


def _remove_value(route: Route) -> str:
    """A server that returns the header does not disclose it."""
    return (
        f"    http-response del-header {_any_form(route.requests.header.name)} -m reg\n"
        if isinstance(route.requests, Broker)
        else ""
    )


def _deny(status: int, reason: str) -> str:
    return f'http-request deny status {status} content-type text/plain string "ktrdr-vm: {reason}\\n"'


def _any_form(header: str) -> str:
    """A regular expression for the name of a header, in which many servers treat an underscore as a hyphen."""
    return f"^{header.replace('-', '[-_]')}$"


def _acl_paths(paths: tuple[str, ...]) -> str:
    whole = [path for path in paths if not path.endswith("/")]
    return "\n".join(
        [f"    acl allowed_path path -m beg {path if path.endswith('/') else path + '/'}" for path in paths]
        + [f"    acl allowed_path path -m str {path}" for path in whole]
    )


def _gate(route: Route, lists: str) -> str:
    gate = route.after
    if not gate:
        return ""
    shown = f"the gate {gate}" if re.fullmatch(r"[A-Za-z0-9_./-]+", gate) else "its gate"
    return (
        "    http-request set-var(txn.verdict) str(gate)\n"
        f"    {_deny(403, f'refused, {route.secret} may not be used before {shown} has passed')}"
        f" unless {{ str({route.secret}),map_str({lists}/{OPEN}) -m found }}\n"
    )
