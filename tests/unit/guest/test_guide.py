"""The guide in the guest tells an agent where a person leaves commits and comments."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.guest.guide import NOTE_FILES, REVIEWS, make_facts, render_guide
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile, load_profile


def test_it_names_the_branches_and_the_folder_of_a_review() -> None:
    document: dict[str, Any] = {"version": 1, "name": "n", "image": "i", "workspace": {"target": "/project"}}
    facts = Facts("tcg", "/e", "m", "/home", ImageFacts("i", "d" * 64, "/i"))
    guide = render_guide(Plan(build_profile(document), facts, parse_instance_id("one"), document))
    assert REVIEWS == ".ktrdr/review"
    assert "`review/1`, `review/2`" in guide and "/project/.ktrdr/review/" in guide


def test_it_promises_docker_only_of_an_image_that_has_it() -> None:
    """A stock image has it only if its publisher installed it."""
    stock = {"url": "https://a.example/disk.img", "sha256": "0" * 64}
    for image, says in (("debian-13-docker", True), (stock, False)):
        document: dict[str, Any] = {"version": 1, "name": "n", "image": image}
        facts = Facts("tcg", "/e", "m", "/home", ImageFacts("i", "d" * 64, "/i"))
        guide = render_guide(Plan(build_profile(document), facts, parse_instance_id("one"), document))
        assert ("Docker" in guide) is says and "sudo needs no password" in guide


def test_identity_and_guide_tell_the_same() -> None:
    """One is for programs, the other for whoever reads."""
    text = """{version: 1, name: n, image: i, workspace: {target: /project}, gates: [isolation],
        workload: {command: ['true'], timeout: 7m}, secrets: [{name: deploy, source: {env: KTRDR_DEPLOY}, ttl: 90s}],
        egress: {allow: [{host: git.example.com, ports: [22], reason: the forge}]}}"""
    loaded = load_profile(text, "p", lambda *_: ("", b""))
    facts = Facts("tcg", "/e", "m", "/home", ImageFacts("i", "d" * 64, "/i"))
    plan = Plan(loaded.profile, facts, parse_instance_id("one"), loaded.data)
    told, guide = make_facts(plan), render_guide(plan)
    assert f"KTRDR_INSTANCE_ID={told['instance_id']}" in guide and told["instance_id"] == "one"
    assert f"{told['workspace']} is a Git repository" in guide and f"{told['notes']}/" in guide
    assert all(f"`{name}`" in guide for name in NOTE_FILES)
    [secret] = told["secrets"]
    assert f"{secret['name']} is in {secret['path']} for {secret['seconds']} s" in guide
    [rule] = told["egress"]
    assert f"{rule['destination']}, port {rule['ports'][0]}: {rule['reason']}" in guide
    assert f"stopped after {told['workload_seconds']} s" in guide and ", ".join(told["gates"]) in guide
