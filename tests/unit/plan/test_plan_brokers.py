"""Brokered secrets, from the profile to the proxy's configuration and the firewall."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from ktrdr_vm.egress.flow_log import parse_proxy_line
from ktrdr_vm.egress.rules import rules_from_json
from ktrdr_vm.errors import DocumentError
from ktrdr_vm.guest.guide import make_facts, render_guide
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.changes import find_changes
from ktrdr_vm.plan.facts import Facts, ImageFacts, allocate
from ktrdr_vm.plan.guard_interface import BROKER_PORTS
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.scalars import parse_header_template

BROKER: dict[str, Any] = {
    "host": "api.example.com",
    "header": "x-api-key: {{ secret }}",
    "base_url_env": "EXAMPLE_BASE_URL",
}


def make_text(*brokers: dict[str, Any], **more: Any) -> str:
    secrets = [
        {"name": f"key{index}", "source": {"env": "KTRDR_KEY"}, "broker": broker}
        for index, broker in enumerate(brokers)
    ]
    return json.dumps({"version": 1, "name": "p", "image": "debian-13-docker", "secrets": secrets, **more})


def load(text: str) -> Any:
    return load_profile(text, "p", lambda *_: ("", b""))


def make_plan(*brokers: dict[str, Any], **more: Any) -> Plan:
    loaded = load(make_text(*brokers, **more))
    facts = Facts("tcg", "/bin/false", "q35", "/home", ImageFacts("none", "0" * 64, "/nonexistent"))
    return Plan(loaded.profile, facts, parse_instance_id("x"), loaded.data)


def test_a_brokered_secret_is_not_delivered() -> None:
    profile = load(make_text(BROKER)).profile
    assert profile.delivered == () and profile.secrets[0].path == ""
    [(secret, broker)] = profile.brokered
    assert (secret.name, broker.host, broker.methods, broker.paths) == (
        "key0",
        "api.example.com",
        ("GET", "HEAD"),
        ("/",),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "*.example.com"}, "one exact name"),
        ({"host": "192.0.2.1"}, "use cidr instead of host"),
        ({"header": "x-api-key: secret"}, "with {{ secret }} once"),
        ({"header": "x-api-key: {{ secret }} {{ secret }}"}, "with {{ secret }} once"),
        ({"header": "x-api-key: {{ lookup('env', 'HOME') }}"}, "with {{ secret }} once"),
        ({"header": "x key: {{ secret }}"}, "with {{ secret }} once"),
        ({"header": "x: a\nb: {{ secret }}"}, "with {{ secret }} once"),
        ({"header": "Host: {{ secret }}"}, "cannot contain a credential"),
        ({"header": "Transfer-Encoding: {{ secret }}"}, "cannot contain a credential"),
        ({"docker_mirror": True, "base_path": "/v2/"}, "mirrors at / only"),
        ({"methods": ["TRACE"]}, "methods"),
        ({"methods": ["CONNECT"]}, "methods"),
        ({"methods": []}, "methods"),
        ({"paths": ["v1/"]}, "a path such as /v1/"),
        ({"paths": ["/v1/../"]}, "a path such as /v1/"),
        ({"paths": ["/v1 if TRUE"]}, "a path such as /v1/"),
        ({"paths": ["/v1//x"]}, "a path such as /v1/"),
        ({"paths": ["/v1\n"]}, "a path such as /v1/"),
        ({"headers": []}, "headers"),
        ({"headers": ["x_tenant"]}, "letters, digits and hyphens"),
        ({"headers": ["x-a|.*"]}, "letters, digits and hyphens"),
        ({"headers": ["x-tenant\n"]}, "letters, digits and hyphens"),
        ({"headers": ["Authorization"]}, "the guest may not send it"),
        ({"headers": ["X-Amz-Security-Token"]}, "the guest may not send it"),
        ({"headers": ["apikey"]}, "the guest may not send it"),
        ({"headers": ["X-ApiKey"]}, "the guest may not send it"),
        ({"headers": ["X-Auth-Key"]}, "the guest may not send it"),
        ({"headers": ["X-Registry-Auth"]}, "the guest may not send it"),
        ({"headers": ["Token"]}, "the guest may not send it"),
        ({"headers": ["TE"]}, "the guest may not send it"),
        ({"headers": ["X-HTTP-Method-Override"]}, "the guest may not send it"),
        ({"headers": ["X-Forwarded-Host"]}, "the guest may not send it"),
        ({"headers": ["Connection"]}, "the guest may not send it"),
        ({"base_path": "/%2e"}, "a path such as /v1/"),
        ({"base_url_env": "A-B"}, "must be the name of an environment variable"),
        ({"after": "startability"}, "not a gate of the profile"),
        ({"port": 8443}, "unknown key"),
    ],
)
def test_what_a_broker_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(message)):
        load(make_text({**BROKER, **change}))


@pytest.mark.parametrize(
    "key", [{"path": "/run/secrets/x"}, {"mode": "0400"}, {"ttl": "1h"}], ids=lambda key: next(iter(key))
)
def test_what_is_delivered_is_not_brokered(key: dict[str, str]) -> None:
    data = json.loads(make_text(BROKER))
    data["secrets"][0] |= key
    with pytest.raises(DocumentError, match="cannot be used together with"):
        load(json.dumps(data))


def test_a_variable_stands_once() -> None:
    for text in (make_text(BROKER, BROKER), make_text(BROKER, environment={"EXAMPLE_BASE_URL": "x"})):
        with pytest.raises(DocumentError, match="EXAMPLE_BASE_URL occurs twice"):
            load(text)


def test_a_header_is_rendered_from_the_value() -> None:
    assert parse_header_template("Authorization: Bearer {{ secret }}").render(b"abc\n") == "Bearer abc"
    basic = parse_header_template("Authorization: Basic {{ ('x-access-token:' ~ secret) | b64encode }}")
    assert basic.name == "authorization"
    assert base64.b64decode(basic.render(b"abc").removeprefix("Basic ")) == b"x-access-token:abc"


def test_a_header_has_so_many_characters() -> None:
    assert len(parse_header_template("x: Bearer {{ secret }}").render(b"a" * 4089 + b"\n")) == 4096
    with pytest.raises(ValueError, match="4096 at most"):
        parse_header_template("x: Bearer {{ secret }}").render(b"a" * 4090)


@pytest.mark.parametrize("value", [b"", b"\n", b"a\r\nx: y", b"a\0b", "ä".encode(), b"a" * 5000, b"a\tb", b"a "])
def test_a_value_that_would_break_the_header_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="one line of visible ASCII"):
        parse_header_template("x: {{ secret }}").render(value)


def test_each_has_a_port_of_its_own() -> None:
    plan = make_plan(BROKER, {**BROKER, "host": "other.example.com", "base_url_env": "OTHER", "base_path": "/v1"})
    allocation = allocate(0, genid="", host_key="", host_public_key="", login_public_key="")
    documents = plan.render(allocation)
    assert [route.port for route in plan.routes] == [919, 920]
    assert "ip daddr 10.213.0.1 tcp dport { 53, 919, 920 } accept" in documents["ruleset.nft"]
    assert plan.gateway_variables("10.213.0.1") == {
        "EXAMPLE_BASE_URL": "http://10.213.0.1:919",
        "OTHER": "http://10.213.0.1:920/v1",
    }
    assert len(BROKER_PORTS) >= 50
    assert plan_from_json(plan.to_json()).digest == plan.digest


def test_the_proxy_verifies_and_has_no_value() -> None:
    text = make_plan(BROKER, gates=["startability"]).render()["proxy.cfg"]
    server = next(line for line in text.splitlines() if line.strip().startswith("server upstream"))
    assert (
        "verify required" in server and "verifyhost api.example.com" in server and "sni str(api.example.com)" in server
    )
    assert "verify none" not in text and "str(gate)" not in text
    after = make_plan({**BROKER, "after": "startability"}, gates=["startability"]).render()["proxy.cfg"]
    assert "before the gate startability has passed" in after


def test_a_gate_with_odd_letters_does_not_get_into_the_configuration() -> None:
    gate = 'gates/a" if FALSE.yaml'
    assert gate not in make_plan({**BROKER, "after": gate}, gates=[gate]).render()["proxy.cfg"]


def test_the_resolver_knows_the_host_and_no_listener_opens_it() -> None:
    plan = make_plan(BROKER)
    rules = rules_from_json(plan.egress.to_json(), [])
    assert rules.ports("api.example.com") == (443,) and rules.other_ports("api.example.com") == ()
    assert rules.ports("other.example.com") == ()
    assert plan.egress.name_lists == {"http.names": "", "http.suffixes": "", "tls.names": "", "tls.suffixes": ""}


def test_the_guest_is_told_where_and_not_what() -> None:
    plan = make_plan(BROKER)
    assert make_facts(plan)["secrets"] == []
    assert make_facts(plan)["brokered"] == [
        {"name": "key0", "host": "api.example.com", "variable": "EXAMPLE_BASE_URL", "after": ""}
    ]
    assert "api.example.com is available at the URL in `EXAMPLE_BASE_URL`" in render_guide(plan)


def test_a_request_is_a_line() -> None:
    entry = {
        "f": "broker", "k": "key0", "n": "api.example.com", "a": "-", "p": 443, "u": 10, "d": 20, "t": "PR", "v": "path", "m": 3,
        "w": "GET", "s": 403, "q": "/v1/..",
    }  # fmt: skip
    fields = parse_proxy_line(json.dumps(entry).encode())
    assert fields is not None
    assert (fields["kind"], fields["verdict"], fields["rule"], fields["path"]) == ("broker", "deny", "key0", "/v1/..")
    assert fields["message"] == "refused by path" and fields["address"] == ""
    allowed = parse_proxy_line(json.dumps({**entry, "v": "allow", "t": "--", "s": 200, "a": "198.51.100.1"}).encode())
    assert allowed is not None and allowed["verdict"] == "allow" and "message" not in allowed


RULE: dict[str, Any] = {"host": "read.example.com", "methods": ["GET"], "paths": ["/v1/"], "base_url_env": "READ_URL"}


def test_a_rule_by_method_and_path_is_a_route_without_a_secret() -> None:
    plan = make_plan(BROKER, egress={"allow": [RULE, {"host": "plain.example.com"}]})
    assert [(route.secret, route.name, route.port) for route in plan.routes] == [
        ("key0", "key0", 919),
        ("", "url:READ_URL", 920),
    ]
    assert plan.gateway_variables("10.213.0.1")["READ_URL"] == "http://10.213.0.1:920"
    allocation = allocate(0, genid="", host_key="", host_public_key="", login_public_key="")
    documents = plan.render(allocation)
    assert "ip daddr 10.213.0.1 tcp dport { 53, 919, 920 } accept" in documents["ruleset.nft"]
    text = documents["proxy.cfg"].partition("frontend broker_920")[2]
    assert "set-header host read.example.com" in text and "verifyhost read.example.com" in text
    assert "broker.values" not in text and "x-api-key" not in text
    # No listener lets the guest connect to the host itself, and the resolver resolves it for the proxy.
    assert plan.egress.name_lists["tls.names"] == "plain.example.com\n" and plan.egress.name_lists["http.names"] == ""
    assert rules_from_json(plan.egress.to_json(), []).other_ports("read.example.com") == ()
    assert plan_from_json(plan.to_json()).digest == plan.digest


def test_a_change_of_a_rule_by_method_is_applied_to_a_running_instance() -> None:
    before, after = (
        make_plan(egress={"allow": [{**RULE, "methods": methods}]}) for methods in (["GET"], ["GET", "POST"])
    )
    [change] = find_changes(before, after)
    assert (change.part, change.how) == ("egress", "live") and "GET,POST" in str(change)
    assert before.digest != after.digest


def test_the_guest_is_told_of_a_rule_by_method() -> None:
    plan = make_plan(egress={"allow": [RULE]})
    assert make_facts(plan)["requests"] == [
        {"host": "read.example.com", "variable": "READ_URL", "methods": ["GET"], "paths": ["/v1/"]}
    ]
    guide = render_guide(plan)
    assert "read.example.com is available at the URL in `READ_URL` only: GET beneath /v1/" in guide
    assert "all other connections are denied" in guide
