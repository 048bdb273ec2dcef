"""Every way by which a value can leave, against the owner's bounds; and what a branch wants beyond a trusted one."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.policy.ceiling import Use, allows, check_ceiling, check_presets, check_uses
from ktrdr_vm.policy.owner_policy import OwnerPolicy, check_policy, parse_policy
from ktrdr_vm.policy.reach import find_beyond, list_reach
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import build_profile, load_profile
from ktrdr_vm.profile.model import Profile
from ktrdr_vm.profile.schema import PROFILE

DELIVERED = {"name": "key", "source": {"env": "KTRDR_MODEL_KEY"}}


def brokered(host: str, env: str = "KTRDR_GITHUB_TOKEN", **more: Any) -> dict[str, Any]:
    broker = {"host": host, "header": "Authorization: Bearer {{ secret }}", "base_url_env": "API_URL", **more}
    return {"name": "token", "source": {"env": env}, "broker": broker}


def limited(host: str, **more: Any) -> dict[str, Any]:
    return {"host": host, "methods": ["GET"], "paths": ["/v1/x"], "base_url_env": "API_URL", **more}


def profile(**part: Any) -> Profile:
    return build_profile({"version": 1, "name": "p", "image": "debian-13-docker", **part})


def problems(policy: str, part: dict[str, Any]) -> list[str]:
    text = yaml.safe_dump({"version": 1, "name": "p", "image": "debian-13-docker", **part})
    loaded = load_profile(text, "p.yaml", lambda *_: ("", b""))
    return [str(one) for one in check_policy(loaded, parse_policy(policy), "/ws")]


USES = "secrets: {uses: [{env: KTRDR_GITHUB_TOKEN, hosts: [api.github.com]}, {env: KTRDR_MODEL_KEY, hosts: [models.example.com]}]}\n"
CEILING = "egress: {ceiling: [{host: '*.good.example', ports: [443, 22]}, {cidr: 203.0.113.0/24}]}\n"
BOUNDED = "egress: {ceiling: [{host: '*.good.example', methods: [GET, HEAD], paths: [/v1]}]}\n"

# Each way out: a part of a profile, and the key that must be named.
WAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "broker": (USES, {"secrets": [brokered("collect.evil.example")]}, "secrets[0].broker.host"),
    "broker of another secret": (USES, {"secrets": [DELIVERED, brokered("api.github.com")]}, "secrets[1].broker.host"),
    "unlisted": (USES, {"secrets": [brokered("api.github.com", env="KTRDR_OTHER")]}, "secrets[0].source"),
    "name": (USES, {"secrets": [DELIVERED], "egress": {"allow": [{"host": "evil.example"}]}}, "egress.allow[0].host"),
    "wildcard": (
        USES,
        {"secrets": [DELIVERED], "egress": {"allow": [{"host": "*.example.com"}]}},
        "egress.allow[0].host",
    ),
    "port": (CEILING, {"egress": {"allow": [{"host": "a.good.example", "ports": [25]}]}}, "egress.allow[0].host"),
    "range": (
        USES,
        {"secrets": [DELIVERED], "egress": {"allow": [{"cidr": "203.0.113.5/32"}]}},
        "egress.allow[0].cidr",
    ),
    "observe": (
        USES + "egress: {observe: true}\n",
        {"secrets": [DELIVERED], "egress": {"mode": "observe"}},
        "egress.mode",
    ),
    "requests": (
        USES,
        {"secrets": [DELIVERED], "egress": {"allow": [limited("evil.example")]}},
        "egress.allow[0].host",
    ),
    "requests beyond": (CEILING, {"egress": {"allow": [limited("evil.example")]}}, "egress.allow[0].host"),
    "methods beyond": (
        BOUNDED,
        {"egress": {"allow": [limited("a.good.example", methods=["GET", "POST"])]}},
        "egress.allow[0].host",
    ),
    "paths beyond": (
        BOUNDED,
        {"egress": {"allow": [limited("a.good.example", paths=["/v10/"])]}},
        "egress.allow[0].host",
    ),
    "connections beyond requests": (
        BOUNDED,
        {"egress": {"allow": [{"host": "a.good.example"}]}},
        "egress.allow[0].host",
    ),
    "broker beyond requests": (
        BOUNDED,
        {"secrets": [brokered("a.good.example", methods=["DELETE"])]},
        "secrets[0].broker.host",
    ),
    "name beyond": (CEILING, {"egress": {"allow": [{"host": "evil.example"}]}}, "egress.allow[0].host"),
    "wildcard beyond": (CEILING, {"egress": {"allow": [{"host": "*.evil.example"}]}}, "egress.allow[0].host"),
    "range beyond": (CEILING, {"egress": {"allow": [{"cidr": "203.0.112.0/23"}]}}, "egress.allow[0].cidr"),
    "broker beyond": (CEILING, {"secrets": [brokered("api.github.com")]}, "secrets[0].broker.host"),
    "observe beyond": (CEILING[:-2] + ", observe: true}\n", {"egress": {"mode": "observe"}}, "egress.mode"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_out_is_refused_with_its_place(way: str) -> None:
    policy, part, place = WAYS[way]
    found = problems(policy, part)
    assert found and any(f"{place}:" in one for one in found), found
    # Without the bound it is allowed: it is the bound that refuses.
    assert problems("egress: {observe: true}\n" if "observe" in way else "", part) == []


def test_every_key_that_names_a_destination_is_tried() -> None:
    """A new one must get its bound, and a row above."""
    rule = set(PROFILE["egress"]["schema"]["allow"]["schema"]["schema"]) - {"reason"}
    broker = set(PROFILE["secrets"]["schema"]["schema"]["broker"]["schema"])
    assert rule == {"host", "cidr", "preset", "ports", "methods", "paths", "headers", "base_url_env", "base_path"}
    assert broker == {
        "host",
        "header",
        "base_url_env",
        "base_path",
        "methods",
        "paths",
        "headers",
        "after",
        "docker_mirror",
    }
    assert set(PROFILE["egress"]["schema"]) == {"allow", "mode"} and set(PROFILE["telemetry"]["schema"]) == {"otlp"}


def test_what_is_within_is_allowed() -> None:
    inside = {"secrets": [brokered("api.github.com")], "egress": {"allow": [{"host": "anything.example"}]}}
    assert problems(USES, inside) == []  # a brokered secret never enters the guest
    assert problems(USES, {"secrets": [DELIVERED], "egress": {"allow": [{"host": "models.example.com"}]}}) == []
    assert (
        problems(
            BOUNDED,
            {
                "egress": {
                    "allow": [limited("a.good.example"), limited("b.good.example", base_url_env="B", paths=["/v1"])]
                }
            },
        )
        == []
    )
    assert problems(BOUNDED, {"secrets": [brokered("a.good.example", paths=["/v1/"])]}) == []
    assert problems(CEILING, {"egress": {"allow": [limited("a.good.example")]}}) == []
    assert (
        problems(
            CEILING, {"egress": {"allow": [{"host": "a.good.example", "ports": [22]}, {"cidr": "203.0.113.8/32"}]}}
        )
        == []
    )
    assert (
        problems(
            'secrets: {uses: [{env: "KTRDR_*", hosts: ["*"]}]}',
            {"secrets": [DELIVERED], "egress": {"allow": [{"host": "x.example"}]}},
        )
        == []
    )


def test_a_preset_does_not_open_what_is_limited() -> None:
    wanted = profile(egress={"allow": [{"preset": "forge"}, limited("api.forge.example")]})
    for host, ports in (("api.forge.example", (443,)), ("*.forge.example", (443,)), ("api.forge.example", (80,))):
        [(place, message)] = check_presets(wanted, (("forge", (EgressRule(host=host, ports=ports),)),), None, None)
        assert place == ("egress", "allow", 0, "preset") and "every request" in message
    assert (
        check_presets(
            wanted,
            (("forge", (EgressRule(host="forge.example"), EgressRule(host="api.forge.example", ports=(22,)))),),
            None,
            None,
        )
        == []
    )


def test_presets_are_judged_by_what_they_stand_for() -> None:
    wanted = profile(egress={"allow": [{"preset": "pypi"}]}, secrets=[DELIVERED])
    known = (
        ("pypi", (EgressRule(host="index.example", preset="pypi"), EgressRule(host="files.example", preset="pypi"))),
    )
    assert check_presets(wanted, known, None, None) == []
    assert check_presets(wanted, known, (EgressRule(preset="pypi"),), None) == []
    assert (
        check_presets(wanted, known, (EgressRule(host="index.example"), EgressRule(host="files.example")), None) == []
    )
    [(place, message)] = check_presets(wanted, known, (EgressRule(host="index.example"),), None)
    assert place == ("egress", "allow", 0, "preset") and "files.example" in message
    assert check_presets(wanted, known, None, (Use(("index.example",), env="KTRDR_MODEL_KEY"),))
    assert check_ceiling(wanted, ()) == [] and check_ceiling(wanted, None) == [] and check_uses(wanted, None) == []


NAMES = st.sampled_from(["a.example", "b.a.example", "*.a.example", "*.example", "example", "xa.example"])


@given(NAMES, NAMES, st.sampled_from(["b.a.example", "a.example", "c.b.a.example", "xa.example", "example"]))
def test_what_a_bound_lets_by_it_covers_whole(wanted: str, bound: str, name: str) -> None:
    def matches(pattern: str) -> bool:
        return name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:]))

    if allows((EgressRule(host=bound),), EgressRule(host=wanted)) and matches(wanted):
        assert matches(bound)
    assert not allows((EgressRule(cidr=IPv4Network("0.0.0.0/0")),), EgressRule(host=wanted))


@pytest.mark.parametrize(
    "text",
    ["secrets: {uses: [{hosts: [a.example]}]}", "secrets: {uses: [{env: X}]}", "egress: {ceiling: [{ports: [1]}]}", "prepare: {projects: [{refs: [main]}]}", "secrets: {uses: [{env: X, file: /x, hosts: ['*']}]}"],
)  # fmt: skip
def test_half_a_bound_is_an_error(text: str) -> None:
    with pytest.raises(DocumentError):
        parse_policy(text)


def test_what_a_branch_wants_beyond_the_trusted_one() -> None:
    before = profile(egress={"allow": [{"host": "a.example"}]}, secrets=[brokered("api.github.com")])
    assert find_beyond(before, before) == ()
    for part in (
        {"egress": {"allow": [{"host": "a.example"}]}, "secrets": [brokered("collect.evil.example")]},
        {"egress": {"allow": [{"host": "a.example"}]}, "secrets": [brokered("api.github.com", methods=["POST"])]},
        {"egress": {"allow": [{"host": "a.example"}]}, "secrets": [brokered("api.github.com"), DELIVERED]},
        {"egress": {"allow": [{"host": "a.example"}]}, "secrets": [brokered("api.github.com", env="KTRDR_OTHER")]},
    ):
        assert any(one.carries for one in find_beyond(profile(**part), before)), part
    more = find_beyond(
        profile(egress={"allow": [{"host": "a.example", "ports": [443, 22]}]}, secrets=[brokered("api.github.com")]),
        before,
    )
    assert [one.text for one in more] == ["egress to a.example:22"] and not more[0].carries
    assert len(find_beyond(before, None)) == len(list_reach(before)) == 2
    assert OwnerPolicy().uses is None
