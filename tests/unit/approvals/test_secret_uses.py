"""An approval of a secret is bounded by `secrets.uses`, as a profile is: every destination of the guest counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.approvals import apply
from ktrdr_vm.errors import UsageError
from ktrdr_vm.policy.owner_policy import OwnerPolicy, parse_policy
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Secret

BARE = {"version": 1, "name": "p", "image": "debian-13-docker"}
MODEL = {
    "name": "model", "source": {"env": "KTRDR_MODEL"},
    "broker": {"host": "model.example.com", "header": "x-api-key: {{ secret }}", "base_url_env": "MODEL_URL"},
}  # fmt: skip
USES = """secrets:
  uses:
    - {env: KTRDR_MODEL, hosts: [model.example.com]}
    - {env: KTRDR_TOKEN, hosts: [forge.example.com, %s]}
"""


def ask(policy: OwnerPolicy, presets: Any = (), env: str = "KTRDR_TOKEN", **part: Any) -> dict[str, str]:
    profile = build_profile({**BARE, **part})
    plan = SimpleNamespace(profile=profile, facts=SimpleNamespace(workspace="/work", presets=presets))
    loaded: Any = SimpleNamespace(plan=plan, instance_id="one")
    return apply._check_source(loaded, policy, Secret("token", "/run/secrets/token", env=env))


@pytest.fixture(autouse=True)
def value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "read_source", lambda source: b"x")


def allow(*hosts: str) -> dict[str, Any]:
    return {"egress": {"allow": [{"host": host} for host in hosts]}}


NARROW, WIDE = (parse_policy(USES % host) for host in ("forge2.example.com", '"*"'))


def test_a_secret_goes_where_the_owner_says() -> None:
    assert ask(NARROW) == {"env": "KTRDR_TOKEN"}
    assert ask(NARROW, **allow("forge.example.com")) == {"env": "KTRDR_TOKEN"}
    assert ask(WIDE, **allow("anywhere.example.org"), secrets=[MODEL]) == {"env": "KTRDR_TOKEN"}
    assert ask(OwnerPolicy(), **allow("anywhere.example.org")) == {"env": "KTRDR_TOKEN"}


@pytest.mark.parametrize("source", [{"file": "/root/.ssh/id_rsa"}, {"file": "/srv/token"}, {"env": "AWS_SECRET_KEY"}])
def test_a_source_that_the_owner_does_not_allow_is_refused(source: dict[str, Any]) -> None:
    plan = SimpleNamespace(profile=build_profile(BARE), facts=SimpleNamespace(workspace="/work", presets=()))
    loaded: Any = SimpleNamespace(plan=plan, instance_id="one")
    policy = parse_policy("secrets: {files: [/root/.ssh/id_rsa, /srv/other]}\n")
    with pytest.raises(UsageError, match="as a source of secrets"):
        apply._check_source(loaded, policy, Secret("token", "/run/secrets/token", **source))


PRESETS = (
    ("forges", build_profile({"version": 1, "name": "p", "image": "x", **allow("code.example.org")}).egress.allow),
)


@pytest.mark.parametrize(
    ("part", "presets", "env"),
    [
        (allow("paste.example.org"), (), "KTRDR_TOKEN"),
        (allow("forge.example.com", "paste.example.org"), (), "KTRDR_TOKEN"),
        ({"egress": {"allow": [{"cidr": "203.0.113.7/32", "ports": [443]}]}}, (), "KTRDR_TOKEN"),
        ({"egress": {"allow": [{"preset": "forges"}]}}, PRESETS, "KTRDR_TOKEN"),
        ({"egress": {"mode": "observe"}}, (), "KTRDR_TOKEN"),
        ({"secrets": [MODEL]}, (), "KTRDR_TOKEN"),
        ({}, (), "KTRDR_UNLISTED"),
    ],
)  # fmt: skip
def test_and_nowhere_else(part: dict[str, Any], presets: Any, env: str) -> None:
    with pytest.raises(UsageError) as refused:
        ask(NARROW, presets, env, **part)
    assert "policy.yaml" in refused.value.hint
