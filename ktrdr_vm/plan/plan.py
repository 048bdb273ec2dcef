"""The plan: all resources and documents, rendered and digested before any of them exists. Pure and deterministic."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ktrdr_vm.identity import Identity, parse_instance_id
from ktrdr_vm.plan.brokers import Route, make_routes
from ktrdr_vm.plan.cloud_init import render_meta_data, render_network_config, render_user_data
from ktrdr_vm.plan.domain_xml import render_domain
from ktrdr_vm.plan.egress_policy import EgressPolicy, compile_policy
from ktrdr_vm.plan.facts import (
    AUTHORITIES,
    BUNDLE,
    OWN_AUTHORITIES,
    PLACEHOLDER,
    Allocation,
    Facts,
    GuestFile,
    HotplugReserve,
    ImageFacts,
    TemplateFacts,
)
from ktrdr_vm.plan.guard_interface import INBOX_PORT
from ktrdr_vm.plan.haproxy import render_proxy
from ktrdr_vm.plan.nftables_host import render_host_ruleset
from ktrdr_vm.plan.nftables_namespace import render_ruleset
from ktrdr_vm.plan.telemetry import make_variables
from ktrdr_vm.profile.collector import Collector
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Profile

# OpenSSL, pip, and every program that uses Python's requests.
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True)
class Plan:
    """A profile joined with the facts of a host and an identity."""

    profile: Profile
    facts: Facts
    identity: Identity
    source: dict[str, Any] = field(default_factory=dict, compare=False)
    """The merged profile document, from which the plan can be created again."""

    @property
    def rules(self) -> tuple[EgressRule, ...]:
        """The destinations that the guest may connect to: the allowlist with every preset replaced by its rules in the
        facts."""
        presets = dict(self.facts.presets)
        rules: list[EgressRule] = []
        for rule in (one for one in self.profile.egress.allow if one.requests is None):
            rules.extend(presets[rule.preset] if rule.preset else (rule,))
        return tuple(dict.fromkeys(rules))

    @property
    def egress(self) -> EgressPolicy:
        return compile_policy(self.rules, brokered=[route.requests.host for route in self.routes], observe=self.observe)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The brokered secrets, and the rules by method and path."""
        return make_routes(self.profile)

    @property
    def collector(self) -> Collector | None:
        """The collector for telemetry of the workload; None if the profile has no telemetry."""
        return self.facts.collector if self.profile.telemetry.otlp else None

    @property
    def served(self) -> bool:
        """True if a variable in the guest contains the URL of a service of the gateway."""
        return bool(self.routes or self.collector)

    def gateway_variables(self, gateway: str) -> dict[str, str]:
        """Variables of the guest with the URLs of services of the gateway: brokered hosts and OTLP."""
        urls = {route.requests.base_url_env: route.base_url(gateway) for route in self.routes}
        return urls | (make_variables(gateway) if self.collector else {})

    @property
    def client_variables(self) -> dict[str, str]:
        """Variables of the guest for clients that do not read the certificates of the system; none if the host has none
        of its own."""
        own = any(one.path.startswith(AUTHORITIES) for one in self.facts.client_files)
        return {**dict.fromkeys(_BUNDLE_VARIABLES, BUNDLE), "NODE_EXTRA_CA_CERTS": OWN_AUTHORITIES} if own else {}

    @property
    def observe(self) -> bool:
        """True if the run allows every public address and records it."""
        return self.profile.egress.mode == "observe"

    @property
    def instance_directory(self) -> str:
        return f"{self.facts.home}/instances/{self.identity.instance_id}"

    def render(self, allocation: Allocation = PLACEHOLDER, template: TemplateFacts | None = None) -> dict[str, str]:
        """Every document by its file name. With the placeholder allocation, every call returns the same bytes.

        The plan and its digest do not depend on a template, which affects only the start of the domain.
        """
        identity, facts = self.identity, self.facts
        return {
            "domain.xml": render_domain(self.profile, facts, identity, allocation, self.instance_directory, template),
            "user-data": render_user_data(identity, facts, allocation),
            "meta-data": render_meta_data(identity),
            "network-config": render_network_config(allocation),
            "ruleset.nft": render_ruleset(
                identity,
                facts.home,
                allocation,
                self.rules,
                facts.owner_reserved,
                services=(*((INBOX_PORT,) if self.profile.asks else ()), *(route.port for route in self.routes)),
                has_telemetry=self.collector is not None,
                observe=self.observe,
            ),
            "ruleset-host.nft": render_host_ruleset(
                identity, facts.home, allocation, self.rules, facts.owner_reserved, self.collector
            ),
            "proxy.cfg": render_proxy(
                identity, allocation, f"{self.instance_directory}/guard", observe=self.observe, routes=self.routes
            ),
            "egress.json": canonical_json(self.egress.to_json()),
        }

    @property
    def digest(self) -> str:
        """sha256 over the canonical content of the plan: the profile, the facts and every document."""
        return hashlib.sha256(canonical_json(self._content()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {**self._content(), "source": self.source, "digest": self.digest}

    def _content(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "instance_id": self.identity.instance_id,
            "profile": plain(self.profile),
            "facts": plain(self.facts),
            "documents": self.render(),
        }


def plan_from_json(content: dict[str, Any]) -> Plan:
    """The plan in the format of `to_json`, as in the journal."""
    facts = dict(content["facts"])
    image = ImageFacts(**facts.pop("image"))
    presets = tuple((name, tuple(_rule(rule) for rule in rules)) for name, rules in facts.pop("presets"))
    reserved = tuple((IPv4Address(address), port) for address, port in facts.pop("owner_reserved"))
    playbooks = tuple((name, digest) for name, digest in facts.pop("playbooks"))
    client_files = tuple(GuestFile(**one) for one in facts.pop("client_files", ()))
    collector = facts.pop("collector", None)
    lending = facts.pop("lending", {})
    return Plan(
        build_profile(content["source"]),
        Facts(
            image=image,
            presets=presets,
            client_files=client_files,
            owner_reserved=reserved,
            playbooks=playbooks,
            collector=Collector(**collector) if collector else None,
            lending=HotplugReserve(**lending),
            **facts,
        ),
        parse_instance_id(content["instance_id"]),
        content["source"],
    )


def _rule(content: dict[str, Any]) -> EgressRule:
    cidr = content["cidr"]
    return EgressRule(**{**content, "cidr": IPv4Network(cidr) if cidr else None, "ports": tuple(content["ports"])})


def plain(value: Any) -> Any:
    """Dataclasses, tuples and addresses as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
