"""The configuration of the proxy, which checks names and opens the outbound connections. The guard passes its listeners
and log.

The log is one JSON object a line on standard output: frontend `f`, verdict `v`, name `n`, address and port of the
guest's connection `a` and `p`, bytes up and down `u` and `d`, milliseconds `m`, HAProxy's termination state `t`, HTTP
method `w` and status `s`, and the grant slot `g` if a grant allowed it. Values of the guest are cut before they are
logged, so that no line is longer than LOG_LINE, where HAProxy cuts: an invalid name is refused before all other checks.
A name that the profile does not list is searched in the maps of granted names, which the guard changes while the proxy
runs; each grant has a grant slot, a separate server, so that its connections can be ended separately.
"""

from __future__ import annotations

from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.brokers import NO_SWITCH, Route, render_limits, render_offers, render_routes
from ktrdr_vm.plan.facts import Allocation
from ktrdr_vm.plan.guard_interface import DNS_PORT, GIVEN, GRANT_SLOTS

# The limit for one guest: 15 MB resident when idle, about 35 KB for each open connection.
MAX_CONNECTIONS = 1024
# Bytes of a log line. Name, method and path are at most 254, 20 and 400 bytes, each six bytes long when escaped in
# JSON.
LOG_LINE = 8192
# The time limit of a connection without data in either direction.
IDLE_LIMIT = "1h"

# A valid name, in SNI and Host alike; the resolver uses the same rule.
_NAME = "^[a-z0-9_.-]{1,253}$"
_HOST = "^[a-z0-9_.-]{1,253}(:[0-9]{1,5})?$"
_FIELDS = (
    '"f":"%f","n":"%[var(txn.name),json(utf8ps)]","g":"%[var(txn.grant_slot)]","p":%[dst_port],"u":%U,"d":%B,"t":"%ts"'
)


def render_proxy(
    identity: Identity, allocation: Allocation, lists: str, *, observe: bool = False, routes: tuple[Route, ...] = ()
) -> str:
    """HAProxy 2.6 or later. `lists` is the folder with the name lists of `EgressPolicy.name_lists`.

    One thread instead of one for each CPU of the host: connections are not moved between threads, which would cost a
    fifth of the CPU time, and the proxy of a guest uses at most one CPU. One thread splices more than two gigabytes a
    second.

    `routes` are credentials that it adds for the guest. With `observe`, destinations without a rule pass as well, with
    their own verdict.
    """
    resolve = "do-resolve(txn.address,guard,ipv4) var(txn.name)"
    sections = (
        _render_global(identity, allocation, routes),
        _render_tls(lists, resolve, observe),
        _render_http(identity, lists, resolve, observe),
        _OTHER,
        render_routes(routes, allocation.gateway, lists),
    )
    return "".join(sections)


def _render_global(identity: Identity, allocation: Allocation, routes: tuple[Route, ...]) -> str:
    return f"""\
# ktrdr-vm instance_id={identity.instance_id}
global
    maxconn {MAX_CONNECTIONS}
    log stdout len {LOG_LINE} format raw local0 info
    stats socket "fd@${{KTRDR_FD_STATS}}" level admin
    hard-stop-after 2s
    nbthread 1
    no-memory-trimming{render_limits(routes)}

# Data is spliced between sockets in the kernel: three times as fast, with two descriptors for each transfer.
defaults
    log global
    option splice-request
    option splice-response
    timeout connect 10s
    timeout client {IDLE_LIMIT}
    timeout server {IDLE_LIMIT}
    timeout tunnel {IDLE_LIMIT}
    timeout http-request 10s
    timeout http-keep-alive 30s
    timeout queue 5s
    retries 1

# Only the guard's resolver is used, so that a name leads to no address that it refused.
resolvers guard
    nameserver guard {allocation.loopback}:{DNS_PORT}
    resolve_retries 2
    timeout resolve 1s
    timeout retry 2s
    hold valid 1s
    accepted_payload_size 1232

"""


def _render_tls(lists: str, resolve: str, observe: bool) -> str:
    """Connections to port 443, checked by the server name in the ClientHello."""
    return f"""\
frontend tls
    mode tcp
    bind "fd@${{KTRDR_FD_TLS}}"
    log-format '{{{_FIELDS},"a":"%[dst]","v":"%[var(txn.verdict)]","m":%Tt}}'
    tcp-request inspect-delay 5s
    acl hello req.ssl_hello_type 1
    tcp-request content set-var(txn.verdict) str(no-hello)
    tcp-request content set-var(txn.name) req.ssl_sni,lower,bytes(0,254) if hello
    tcp-request content set-var(txn.verdict) str(no-name) if hello !{{ var(txn.name) -m found }}
    acl is_name var(txn.name) -m reg {_NAME}
    tcp-request content set-var(txn.verdict) str(bad-name) if hello {{ var(txn.name) -m found }} !is_name
    tcp-request content silent-drop if hello {{ var(txn.name) -m found }} !is_name
    tcp-request content set-var-fmt(txn.given) "%[var(txn.name)]@%[dst]" if hello
    acl given var(txn.given) -m str -f {lists}/{GIVEN}
    acl allowed var(txn.name) -m str -f {lists}/tls.names
    acl allowed var(txn.name) -m end -f {lists}/tls.suffixes
    acl granted var(txn.name),map_str({lists}/tls.granted) -m found
    acl granted var(txn.name),map_end({lists}/tls.granted_suffixes) -m found
{_judge_tls(resolve, lists, observe)}
    use_backend granted_tls if {{ var(txn.grant_slot) -m found }}
    default_backend by_name_tls

backend by_name_tls
    mode tcp
    server by_name 0.0.0.0:443

backend granted_tls
    mode tcp
    use-server %[var(txn.grant_slot)] if TRUE
    server-template g {GRANT_SLOTS} 0.0.0.0:443

"""


def _render_http(identity: Identity, lists: str, resolve: str, observe: bool) -> str:
    """Requests to port 80, each checked by its Host header."""
    refused = (
        f"ktrdr-vm: %[var(txn.name)]:80 is not in the egress allowlist of {identity.instance_id};"
        " ask with: ktrdr-escalate network %[var(txn.name)] 80\\n"
    )
    return f"""\
frontend http
    mode http
    bind "fd@${{KTRDR_FD_HTTP}}"
    option disable-h2-upgrade
    # Each part of a streamed response is forwarded immediately; without this, HTTP waits up to 200 ms for the next part.
    option http-no-delay
    log-format '{{{_FIELDS},"a":"%[dst]","v":"%[var(txn.verdict)]","m":%Ta,"w":"%[var(txn.method),json(utf8ps)]","s":%ST}}'
    http-request set-var(txn.method) method,bytes(0,20)
    http-request set-var(txn.verdict) str(request)
    acl one_host req.hdr_cnt(host) eq 1
    http-request set-var(txn.name) req.hdr(host),host_only,lower,bytes(0,254) if one_host
    {_deny("a request must have exactly one Host header")} unless one_host
    # A server that interprets it differently would send the request elsewhere.
    acl plain_host req.fhdr(host) -m reg -i {_HOST}
    {_deny("the Host must be a name of letters, digits, dots, hyphens and underscores, with an optional port")} unless plain_host
    acl plain_method method -m reg ^[A-Za-z-]{{1,20}}$
    {_deny("the method must have at most 20 letters")} unless plain_method
    # An absolute URI, CONNECT and a WebSocket could lead to another destination than the Host header.
    acl whole_uri url -m reg -i ^[a-z][a-z0-9+.-]*:
    acl connect method CONNECT
    {_deny("proxy requests are not forwarded")} if whole_uri or connect
{render_offers(_deny("WebSockets are not forwarded"))}
    http-request del-header connection if {{ req.hdr(upgrade) -m found }}
    http-request del-header ^(upgrade|http2-settings|sec-websocket-.*)$ -m reg
    http-request set-var(txn.verdict) str(name)
    http-request set-var-fmt(txn.given) "%[var(txn.name)]@%[dst]"
    acl given var(txn.given) -m str -f {lists}/{GIVEN}
    acl allowed var(txn.name) -m str -f {lists}/http.names
    acl allowed var(txn.name) -m end -f {lists}/http.suffixes
    acl granted var(txn.name),map_str({lists}/http.granted) -m found
    acl granted var(txn.name),map_end({lists}/http.granted_suffixes) -m found
{_judge_http(resolve, lists, refused, observe)}
    use_backend granted_http if {{ var(txn.grant_slot) -m found }}
    default_backend by_name_http

backend by_name_http
    mode http
    http-reuse never
    {NO_SWITCH}
    server by_name 0.0.0.0:80

backend granted_http
    mode http
    http-reuse never
    {NO_SWITCH}
    use-server %[var(txn.grant_slot)] if TRUE
    server-template g {GRANT_SLOTS} 0.0.0.0:80

"""


# Connections that nftables accepted by address and port; the server connects to their original destination.
_OTHER = f"""\
# Connections that nftables accepted by address and port; the server connects to their original destination.
frontend other
    mode tcp
    bind "fd@${{KTRDR_FD_OTHER}}"
    log-format '{{{_FIELDS},"a":"%[dst]","v":"allow","m":%Tt}}'
    default_backend original_destination

backend original_destination
    mode tcp
    server original 0.0.0.0
"""


def _deny(reason: str) -> str:
    return f'http-request deny status 403 content-type text/plain string "ktrdr-vm: refused, {reason}\\n"'


_NO_SLOT = "!{ var(txn.grant_slot) -m found }"
_NO_ADDRESS = "!{ var(txn.address) -m found }"


def _judge_tls(resolve: str, lists: str, observe: bool) -> str:
    """The rules for a connection after its name was read. `hello`, `allowed` and `granted` are ACLs of the frontend."""
    rule = "tcp-request content"
    # Searched again after the name was resolved, because a grant may have ended meanwhile.
    grant_slots = [
        f"{rule} set-var(txn.grant_slot) var(txn.name),map_str({lists}/tls.granted) if hello !allowed",
        (
            f"{rule} set-var(txn.grant_slot) var(txn.name),map_end({lists}/tls.granted_suffixes) if hello !allowed"
            f" {_NO_SLOT}"
        ),
    ]
    if observe:
        return _lines(
            f"{rule} set-var(txn.address) dst if hello given",
            f"{rule} {resolve} if hello !given {{ var(txn.name) -m found }}",
            f"{rule} set-var(txn.verdict) str(address) if hello allowed {_NO_ADDRESS}",
            f"{rule} silent-drop if hello allowed {_NO_ADDRESS}",
            f"{rule} set-dst var(txn.address) if hello {{ var(txn.address) -m found }}",
            *grant_slots,
            f"{rule} set-var(txn.verdict) str(observe)",
            f"{rule} set-var(txn.verdict) str(allow) if hello allowed or hello {{ var(txn.grant_slot) -m found }}",
            f"{rule} accept",
        )
    # Without CAP_NET_ADMIN a silent drop is a reset, which notifies the client immediately.
    return _lines(
        f"{rule} set-var(txn.verdict) str(name) if hello {{ var(txn.name) -m found }} !allowed !granted",
        f"{rule} silent-drop if hello !allowed !granted",
        f"{rule} set-var(txn.address) dst if hello given",
        f"{rule} {resolve} if hello !given",
        f"{rule} set-var(txn.verdict) str(address) if hello {_NO_ADDRESS}",
        f"{rule} silent-drop if hello {_NO_ADDRESS}",
        f"{rule} set-dst var(txn.address) if hello",
        *grant_slots,
        f"{rule} set-var(txn.verdict) str(name) if hello !allowed {_NO_SLOT}",
        f"{rule} silent-drop if hello !allowed {_NO_SLOT}",
        f"{rule} set-var(txn.verdict) str(allow) if hello",
        f"{rule} accept if hello",
        f"{rule} silent-drop",
    )


def _judge_http(resolve: str, lists: str, refused: str, observe: bool) -> str:
    """The rules for one request. `allowed` and `granted` are ACLs of the frontend."""
    deny = "http-request deny status 403 content-type text/plain lf-string"
    no_address = f'{deny} "ktrdr-vm: %[var(txn.name)] has no address that may be reached\\n" if {_NO_ADDRESS}'
    # Searched again after the name was resolved, because a grant may have ended meanwhile.
    grant_slots = [
        f"http-request set-var(txn.grant_slot) var(txn.name),map_str({lists}/http.granted) if !allowed",
        (
            f"http-request set-var(txn.grant_slot) var(txn.name),map_end({lists}/http.granted_suffixes) if !allowed"
            f" {_NO_SLOT}"
        ),
    ]
    if observe:
        return _lines(
            "http-request set-var(txn.verdict) str(address)",
            "http-request set-var(txn.address) dst if given",
            f"http-request {resolve} if !given",
            f"{no_address} allowed",
            "http-request set-dst var(txn.address) if { var(txn.address) -m found }",
            *grant_slots,
            "http-request set-var(txn.verdict) str(observe)",
            "http-request set-var(txn.verdict) str(allow) if allowed or { var(txn.grant_slot) -m found }",
        )
    return _lines(
        f'{deny} "{refused}" unless allowed or granted',
        "http-request set-var(txn.verdict) str(address)",
        "http-request set-var(txn.address) dst if given",
        f"http-request {resolve} if !given",
        no_address,
        "http-request set-dst var(txn.address)",
        "http-request set-var(txn.verdict) str(name)",
        *grant_slots,
        f'{deny} "{refused}" if !allowed {_NO_SLOT}',
        "http-request set-var(txn.verdict) str(allow)",
    )


def _lines(*rules: str) -> str:
    return "\n".join(f"    {rule}" for rule in rules)
