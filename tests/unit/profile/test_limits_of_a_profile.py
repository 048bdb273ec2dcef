"""The limits that the page of profiles states: what is just within is accepted, and what is just beyond is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.guest.personalize import make_environment
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.profile.guest_ground import refuse_variable
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.model import Profile
from ktrdr_vm.profile.strict_yaml import load_yaml

BASE: dict[str, Any] = {"version": 1, "name": "p", "image": "debian-13-docker"}
RULE = {"host": "api.example.com", "methods": ["GET"], "base_url_env": "API_URL"}
BROKER = {"host": "api.example.com", "header": "x: {{ secret }}", "base_url_env": "API_URL"}
SOURCE = {"env": "KTRDR_A"}


def load(text: str, files: dict[str, str] | None = None) -> Profile:
    return load_profile(text, "p.yaml", lambda name, _: (name, (files or {})[name].encode())).profile


def find_problems(**more: Any) -> list[str]:
    try:
        load(json.dumps({**BASE, **more}))
    except DocumentError as error:
        return [problem.path for problem in error.problems]
    return []


def rule(**more: Any) -> dict[str, Any]:
    return {"egress": {"allow": [more]}}


def broker(**more: Any) -> dict[str, Any]:
    return {"secrets": [{"name": "a", "source": SOURCE, "broker": BROKER | more}]}


def secret(**more: Any) -> dict[str, Any]:
    return {"secrets": [{"name": "a", "source": SOURCE, **more}]}


def mounts(count: int) -> dict[str, Any]:
    return {"mounts": [{"source": "data", "target": f"/data{number}"} for number in range(count)]}


def secrets(count: int) -> dict[str, Any]:
    return {"secrets": [{"name": f"s{number}", "source": SOURCE} for number in range(count)]}


def prefixes(count: int) -> list[str]:
    return [f"/v{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("within", "beyond", "place"),
    [
        ({"name": "a" * 63}, {"name": "a" * 64}, "name"),
        ({"name": "0_.-"}, {"name": ".a"}, "name"),
        ({"name": "a"}, {"name": "A"}, "name"),
        ({"image": {"url": "https://a.example/i", "sha256": "0a" * 32}}, {"image": {"url": "https://a.example/i", "sha256": "0A" * 32}}, "image.sha256"),
        ({"image": {"url": "https://a.example/i", "sha256": "0a" * 32}}, {"image": {"url": "https://a.example/i", "sha256": "0a" * 31}}, "image.sha256"),
        ({"resources": {"vcpus": 1}}, {"resources": {"vcpus": 0}}, "resources.vcpus"),
        ({"resources": {"vcpus": 64}}, {"resources": {"vcpus": 65}}, "resources.vcpus"),
        ({"resources": {"memory": "256MiB"}}, {"resources": {"memory": "255MiB"}}, "resources.memory"),
        ({"resources": {"memory": "1TiB"}}, {"resources": {"memory": "2GB"}}, "resources.memory"),
        ({"gate_timeout": "1d"}, {"gate_timeout": "1w"}, "gate_timeout"),
        ({"gate_timeout": "90s"}, {"gate_timeout": "1.5h"}, "gate_timeout"),
        ({"ttl": "1h"}, {"ttl": "0s"}, "ttl"),
        (mounts(16), mounts(17), "mounts"),
        (secrets(50), secrets(51), "secrets"),
        ({"gates": [f"g{number}" for number in range(50)]}, {"gates": [f"g{number}" for number in range(51)]}, "gates"),
        ({"egress": {"allow": [{"host": "a.example"}] * 500}}, {"egress": {"allow": [{"host": "a.example"}] * 501}}, "egress.allow"),
        (rule(host="a.example", ports=[1, 65535]), rule(host="a.example", ports=[65536]), "egress.allow[0].ports[0]"),
        (rule(host="a.example", ports=[1]), rule(host="a.example", ports=[0]), "egress.allow[0].ports[0]"),
        (rule(host="*.a.example"), rule(host="*.example"), "egress.allow[0].host"),
        (rule(cidr="126.0.0.0/8"), rule(cidr="126.0.0.0/7"), "egress.allow[0].cidr"),
        (rule(cidr="198.51.100.0/24"), rule(cidr="198.51.100.1/24"), "egress.allow[0].cidr"),
        (rule(cidr="198.51.100.0/24"), rule(cidr="2001:db8::/32"), "egress.allow[0].cidr"),
        (rule(preset="debian"), rule(preset="debian", ports=[443]), "egress.allow[0].preset"),
        (rule(**RULE, paths=prefixes(20)), rule(**RULE, paths=prefixes(21)), "egress.allow[0].paths"),
        (rule(**RULE, headers=[f"x-{n}" for n in range(20)]), rule(**RULE, headers=[f"x-{n}" for n in range(21)]), "egress.allow[0].headers"),
        (broker(paths=prefixes(20)), broker(paths=prefixes(21)), "secrets[0].broker.paths"),
        (broker(headers=[f"x-{n}" for n in range(20)]), broker(headers=[f"x-{n}" for n in range(21)]), "secrets[0].broker.headers"),
        (secret(path="/run/secrets/b"), secret(path="/run/secrets/b/c"), "secrets[0].path"),
        (secret(mode="0640"), secret(mode="0644"), "secrets[0].mode"),
        (secret(mode="640"), secret(mode=640), "secrets[0].mode"),
        ({"workspace": {}, "prepare": {"playbook": "p", "key": ["lock"]}}, {"prepare": {"playbook": "p", "key": ["lock"]}}, "prepare"),
    ],
)  # fmt: skip
def test_the_last_that_is_accepted_and_the_first_that_is_refused(
    within: dict[str, Any], beyond: dict[str, Any], place: str
) -> None:
    assert find_problems(**within) == []
    assert place in find_problems(**beyond)


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ({"env": "KTRDR_A"}, True), ({"file": "/key"}, True), ({"command": ["pass", "a"]}, True), ({}, False),
        ({"env": "KTRDR_A", "file": "/key"}, False), ({"env": "KTRDR_A", "command": ["a"]}, False), ({"file": "/key", "command": ["a"]}, False),
    ],
)  # fmt: skip
def test_a_secret_has_exactly_one_source(source: dict[str, Any], accepted: bool) -> None:
    assert (find_problems(secrets=[{"name": "a", "source": source}]) == []) is accepted


@pytest.mark.parametrize(
    ("path", "accepted"),
    [("a~b/~x", True), ("a..b/..c", True), ("~x", False), ("~", False), ("a/..", False), ("a/$B", False), ("$HOME", False)],
)  # fmt: skip
def test_a_path_of_the_host_is_literal(path: str, accepted: bool) -> None:
    assert (find_problems(workspace={"source": path}) == []) is accepted
    assert (find_problems(mounts=[{"source": path, "target": "/data"}]) == []) is accepted
    assert (find_problems(gates=[path]) == []) is accepted


@pytest.mark.parametrize(
    ("path", "accepted"), [("/data/~/$HOME", True), ("/data/..a", True), ("/data/../b", False), ("data", False)]
)
def test_a_path_of_the_guest_is_absolute_and_literal(path: str, accepted: bool) -> None:
    assert (find_problems(artifacts=[path]) == []) is accepted
    assert (find_problems(mounts=[{"source": "data", "target": path}]) == []) is accepted


def test_values_are_not_expanded() -> None:
    document = {
        **BASE,
        "environment": {"A": "$HOME", "B": "~/x", "C": "{{ 7*7 }}"},
        "vars": {"a": "{{ 7*7 }}", "b": "~"},
        "workload": {"command": ["echo", "$HOME", "{{ 7*7 }}", "~"]},
    }
    profile = load(json.dumps(document))
    assert dict(profile.environment) == document["environment"] and dict(profile.vars) == document["vars"]
    assert profile.workload is not None and list(profile.workload.command) == document["workload"]["command"]


def test_an_empty_workspace_uses_the_defaults_and_lists_may_be_empty() -> None:
    text = "version: 1\nname: p\nimage: debian-13-docker\n"
    empty = "workspace: {}\nmounts: []\nsecrets: []\ngates: []\nartifacts: []\nvars: {}\nenvironment: {}\n"
    profile = load(text + empty)
    workspace = profile.workspace
    assert workspace is not None and (workspace.source, workspace.target) == (".", "/workspace")
    assert (workspace.transfer, workspace.uncommitted, workspace.include) == ("copy", "include", ())
    without = load(text)
    assert (without.workspace, without.workload, without.prepare, without.ttl) == (None, None, None, 0)
    assert (without.verify, without.egress.mode, without.telemetry.otlp) == ("fresh", "enforce", False)
    assert (profile.gates, profile.secrets, profile.mounts, profile.artifacts) == ((), (), (), ())


def test_defaults_of_requests() -> None:
    profile = load(json.dumps({**BASE, **rule(host="b.example.com", paths=["/v1"], base_url_env="B"), **broker()}))
    [limited], [(_, brokered)] = profile.limited, profile.brokered
    assert (limited.methods, limited.base_path, limited.headers) == (("GET", "HEAD"), "/", ())
    assert (brokered.methods, brokered.paths, brokered.base_path, brokered.headers) == (
        ("GET", "HEAD"),
        ("/",),
        "/",
        (),
    )
    assert (brokered.after, brokered.docker_mirror) == ("", False)
    only_methods = load(json.dumps({**BASE, **rule(**RULE)}))
    assert only_methods.limited[0].paths == ("/",)
    assert load(json.dumps({**BASE, **rule(host="a.example")})).egress.allow[0].ports == (443,)


@pytest.mark.parametrize("name", "_ IFS PWD OLDPWD SHLVL SHELLOPTS BASHOPTS PPID".split())
def test_variables_of_a_shell_are_refused(name: str) -> None:
    assert "a shell of the guest replaces it" in refuse_variable(name)
    assert find_problems(environment={name: "x"}) == [f"environment.{name}"]
    assert find_problems(**rule(**RULE | {"base_url_env": name})) == ["egress.allow[0].base_url_env"]


def test_the_identity_contains_the_instance_id_whatever_else_is_set() -> None:
    extra = {"KTRDR_INSTANCE_ID": "other", "COMPOSE_PROJECT_NAME": "other", "A": "1"}
    made = make_environment(parse_instance_id("one"), "sandbox", extra)
    assert (made["KTRDR_INSTANCE_ID"], made["COMPOSE_PROJECT_NAME"], made["A"]) == ("one", "one", "1")


def test_variables_of_telemetry_are_free_without_it_and_refused_with_it() -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        assert find_problems(environment={name: "x"}) == []
        assert find_problems(environment={name: "x"}, telemetry={"otlp": True}) == ["telemetry.otlp"]


def chain(length: int) -> dict[str, str]:
    """So many profiles, each of which extends the next one."""
    files = {f"{number}.yaml": f"extends: {number + 1}.yaml\n" for number in range(1, length)}
    return files | {f"{length}.yaml": json.dumps(BASE)}


def test_a_chain_has_eight_profiles_besides_the_first() -> None:
    assert load("extends: 1.yaml\n", chain(8)).name == "p"
    with pytest.raises(DocumentError, match="more than 8 profiles") as caught:
        load("extends: 1.yaml\n", chain(9))
    assert caught.value.problems[0].source == "8.yaml"


def test_four_lists_are_added_to_and_everything_else_is_replaced() -> None:
    base = {
        **BASE, **rule(host="a.example"), "mounts": [{"source": "a", "target": "/a"}], "artifacts": ["/out/a"],
        "secrets": [{"name": "a", "source": SOURCE}], "gates": ["one", "two"], "environment": {"A": "1", "B": "1"}, "vars": {"a": 1, "b": 1},
        "workspace": {"include": ["a", "b"], "target": "/w"}, "workload": {"command": ["a", "b"], "timeout": "3m"},
    }  # fmt: skip
    over = {
        **rule(host="b.example"), "mounts": [{"source": "b", "target": "/b"}], "artifacts": ["/out/b"],
        "secrets": [{"name": "b", "source": SOURCE}], "gates": ["three"], "environment": {"B": "2"}, "vars": {"b": 2},
        "workspace": {"include": ["c"]}, "workload": {"command": ["c"]}, "extends": "base", "image": "other",
    }  # fmt: skip
    profile = load(json.dumps(over), {"base": json.dumps(base)})
    assert [one.host for one in profile.egress.allow] == ["a.example", "b.example"]
    assert [one.target for one in profile.mounts] == ["/a", "/b"] and profile.artifacts == ("/out/a", "/out/b")
    assert [one.name for one in profile.secrets] == ["a", "b"] and profile.gates == ("three",)
    assert dict(profile.environment) == {"A": "1", "B": "2"} and dict(profile.vars) == {"a": 1, "b": 2}
    assert profile.workspace is not None and (profile.workspace.include, profile.workspace.target) == (("c",), "/w")
    assert profile.workload is not None and (profile.workload.command, profile.workload.timeout) == (("c",), 180)
    assert profile.image.recipe == "other"
    emptied = load("extends: base\ngates: []\nmounts: []\nworkspace: {include: []}\n", {"base": json.dumps(base)})
    assert emptied.gates == () and len(emptied.mounts) == 1
    assert emptied.workspace is not None and emptied.workspace.include == ()


def test_values_are_compared_when_each_is_valid() -> None:
    twice = {"gates": ["a", "a"]}
    assert find_problems(**twice) == ["gates[1]"]
    assert find_problems(**twice, resources={"vcpus": 99}) == ["resources.vcpus"]


def test_limits_of_a_document() -> None:
    size = 256 * 1024
    assert load_yaml("a: b #" + "x" * (size - 6), "x").data == {"a": "b"}
    nested, many = "[" * 40 + "]" * 40, "[" + "1," * 49_998 + "1]"
    assert load_yaml(nested, "x").data is not None and len(load_yaml(many, "x").data) == 49_999
    for text, words in (
        ("a: b #" + "x" * (size - 5), "larger than 256 KiB"),
        (f"[{nested}]", "nested more than 40 levels"),
        ("[" + "1," * 49_999 + "1]", "more than 50000 values"),
    ):
        with pytest.raises(DocumentError, match=words):
            load_yaml(text, "x")


@pytest.mark.parametrize("key", ["host", "cidr", "preset", "reason"])
def test_a_value_of_any_length_is_not_repeated_in_its_error(key: str) -> None:
    """The error of a range contained the whole value, and so did the summary of the run in a log."""
    with pytest.raises(DocumentError) as caught:
        load(
            f"version: 1\nname: p\nimage: x\negress: {{allow: [{{{key}: '{chr(7) if key == 'reason' else ''}{'x' * 99_000}'}}]}}\n"
        )
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["\\0", "a\\u0007", "x" * 3000, "../x", "~/x", "$HOME"])
def test_a_name_that_no_path_can_be_is_not_looked_for(name: str) -> None:
    """A NUL ended `validate` and `plan` with a trace, and a name of any length was repeated in a second error."""
    with pytest.raises(DocumentError) as caught:
        load(f'extends: "{name}"\n{json.dumps(BASE)[1:-1]}'.replace(", ", "\n"), {})
    assert [(one.path, one.line, one.column) for one in caught.value.problems] == [("extends", 1, 10)]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "gates: [" + "1," * 4000 + "1]",
        "egress: {allow: [" + "{host: 5}," * 2000 + "]}",
        "environment: {" + ",".join(f"a-{number}: b" for number in range(3000)) + "}",
    ],
    ids=["gates", "rules", "variables"],
)
def test_thousands_of_errors_take_no_minutes(text: str) -> None:
    """They were sorted anew after each one: a profile of 20 KiB kept `validate` busy for more than half a minute."""
    began = time.process_time()
    with pytest.raises(DocumentError) as caught:
        load(f"version: 1\nname: p\nimage: x\n{text}\n")
    assert time.process_time() - began < 10
    assert len(caught.value.problems) > 2000 and len(str(caught.value)) < 2000
