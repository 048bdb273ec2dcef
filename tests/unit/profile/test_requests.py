"""Rules by method and path: what can be enforced, and what is refused because it cannot."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.requests import MOST_ROUTES, Requests

RULE: dict[str, Any] = {"host": "api.example.com", "methods": ["GET"], "base_url_env": "API_URL"}


def load(*rules: dict[str, Any], mode: str = "enforce", **more: Any) -> Any:
    text = {
        "version": 1,
        "name": "p",
        "image": "debian-13-docker",
        "egress": {"allow": list(rules), "mode": mode},
        **more,
    }
    return load_profile(json.dumps(text), "p", lambda *_: ("", b"")).profile


def test_methods_or_paths_make_a_rule_of_requests() -> None:
    profile = load(
        RULE,
        {"host": "api.example.com", "paths": ["/v1/"], "base_url_env": "B", "base_path": "/v1"},
        {"host": "other.example.com"},
    )
    assert profile.limited == (
        Requests(host="api.example.com", base_url_env="API_URL", methods=("GET",)),
        Requests(host="api.example.com", base_url_env="B", base_path="/v1", paths=("/v1/",)),
    )
    assert str(profile.egress.allow[0]) == "api.example.com:443 GET /"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "mirror"}, "must be a DNS name in lower case with a dot"),
        ({"host": "API.example.com"}, "must be a DNS name in lower case with a dot"),
        ({"host": "*.example.com"}, "egress.allow[0].host: methods and paths need one exact name"),
        ({"ports": [80]}, "the only port is 443"),
        ({"ports": [443, 22]}, "the only port is 443"),
        ({"methods": []}, "egress.allow[0].methods"),
        ({"methods": ["CONNECT"]}, "egress.allow[0].methods"),
        ({"methods": ["get"]}, "egress.allow[0].methods"),
        ({"paths": ["/v1/../"]}, "a path such as /v1/"),
        ({"paths": ["/v1//x"]}, "a path such as /v1/"),
        ({"paths": ["/%2e"]}, "a path such as /v1/"),
        ({"paths": ["/v1\n"]}, "a path such as /v1/"),
        ({"paths": ["/v1 if TRUE"]}, "a path such as /v1/"),
        ({"headers": ["X-HTTP-Method-Override"]}, "the guest may not send it"),
        ({"headers": ["Authorization"]}, "the guest may not send it"),
        ({"base_url_env": "A-B"}, "must be the name of an environment variable"),
        ({"base_url_env": "PATH"}, "egress.allow[0].base_url_env"),
        ({"base_url_env": None}, "must not be null"),
    ],
)
def test_what_such_a_rule_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(message)):
        load({**RULE, **change})


@pytest.mark.parametrize("instead", [{"cidr": "198.51.100.7/32"}, {"preset": "pypi"}], ids=["cidr", "preset"])
def test_only_a_name_has_methods(instead: dict[str, Any]) -> None:
    with pytest.raises(DocumentError, match="cannot be used together with"):
        load({**{key: value for key, value in RULE.items() if key != "host"}, **instead})


def test_without_a_base_url_it_is_said_what_cannot_be_done() -> None:
    with pytest.raises(DocumentError, match="A client without one can only be allowed the whole host"):
        load({"host": "api.example.com", "methods": ["GET"]})
    with pytest.raises(DocumentError, match="requires methods or paths"):
        load({"host": "api.example.com", "base_url_env": "API_URL"})


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ({"host": "api.example.com"}, True),
        ({"host": "*.example.com"}, True),
        ({"host": "api.example.com", "ports": [80]}, True),
        ({"host": "api.example.com", "ports": [22]}, False),
        ({"host": "*.api.example.com"}, False),
        ({"host": "example.com"}, False),
    ],
)
def test_another_rule_does_not_make_it_void(other: dict[str, Any], refused: bool) -> None:
    if not refused:
        load(RULE, other)
        return
    for rules in ((RULE, other), (other, RULE)):
        with pytest.raises(DocumentError, match="without methods and paths, and so every request"):
            load(*rules)


def test_observe_mode_does_not_make_it_void() -> None:
    with pytest.raises(DocumentError, match="void in observe mode"):
        load(RULE, mode="observe")


def test_variables_and_ports_are_not_shared() -> None:
    secret = {
        "name": "key",
        "source": {"env": "KTRDR_KEY"},
        "broker": {"host": "a.example", "header": "x: {{ secret }}", "base_url_env": "API_URL"},
    }
    for more in ({"secrets": [secret]}, {"environment": {"API_URL": "x"}}):
        with pytest.raises(DocumentError, match="API_URL occurs twice"):
            load(RULE, **more)
    load(*({**RULE, "base_url_env": f"U{number}"} for number in range(MOST_ROUTES)))
    with pytest.raises(DocumentError, match="at most 50 rules"):
        load(*({**RULE, "base_url_env": f"U{number}"} for number in range(MOST_ROUTES)), secrets=[secret])


@pytest.mark.parametrize(
    ("bound", "paths", "covered"),
    [
        ("/v1/", "/v1/", True),
        ("/v1", "/v1/", True),
        ("/v1", "/v1/x", True),
        ("/", "/v1", True),
        ("/v1/", "/v1", False),
        ("/v1", "/v10", False),
        ("/v1", "/", False),
    ],
)
def test_a_bound_covers_whole_segments(bound: str, paths: str, covered: bool) -> None:
    made = [Requests(host="a", base_url_env="", paths=(one,)) for one in (bound, paths)]
    assert made[0].covers(made[1]) is covered
