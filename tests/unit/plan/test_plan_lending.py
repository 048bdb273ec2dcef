"""What a machine is made ready for: nothing without the owner's word, and the same in a template, a fork and a saved
state."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.domain_memory import HOTPLUG_MEMORY, drop_incoming, find_hotpluggable, maps_readonly
from ktrdr_vm.plan.domain_xml import render_domain, render_template_domain, shares_memory
from ktrdr_vm.plan.facts import PLACEHOLDER, Facts, HotplugReserve, ImageFacts, TemplateFacts
from ktrdr_vm.plan.plan import Plan, plan_from_json
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.model import ImageRef, Mount, Profile, Size

FACTS = Facts("tcg", "/bin/qemu", "q35", "/home", ImageFacts("image", "0" * 64, "/image"))
ALL = replace(FACTS, lending=HotplugReserve(mounts=True, vcpus=8, memory=5000))
PROFILE = Profile(name="p", image=ImageRef(recipe="image"), resources=Size(vcpus=2, memory=2048, disk=10240))
TEMPLATE = TemplateFacts("key", "/template")


def render(profile: Profile, facts: Facts, template: TemplateFacts | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(render_domain(profile, facts, Identity("one"), PLACEHOLDER, "/instance", template))


def list_words(root: ElementTree.Element) -> list[str]:
    return [arg.get("value", "") for arg in root.iter() if arg.tag.endswith("}arg")]


def test_without_the_owners_word_there_is_nothing_to_lend() -> None:
    root = render(PROFILE, FACTS)
    assert root.find("./memoryBacking") is None and list_words(root) == []
    assert (root.findtext("./vcpu"), root.find("./vcpu").get("current")) == ("2", None)  # type: ignore[union-attr]


def test_what_may_be_lent_stands_in_the_machine_from_its_start() -> None:
    for root in (
        render(PROFILE, ALL),
        render(PROFILE, ALL, TEMPLATE),
        render(PROFILE, ALL, replace(TEMPLATE, thaw=False)),
    ):
        assert root.find("./memoryBacking/access[@mode='shared']") is not None
        assert (root.findtext("./vcpu"), root.find("./vcpu").get("current")) == ("8", "2")  # type: ignore[union-attr]
        words = list_words(root)
        assert words[words.index("-m") + 1] == "slots=1,maxmem=4992M", (
            "the size of the profile and whole steps beyond it"
        )
        assert any(f'"id": "{HOTPLUG_MEMORY}"' in word and '"requested-size": 0' in word for word in words)


def test_a_fork_looks_like_its_template_and_shares_memory_only_where_it_must() -> None:
    frozen = ElementTree.fromstring(
        render_template_domain(PROFILE.resources, ALL, Identity("template"), PLACEHOLDER, TEMPLATE)
    )
    assert "mem-path=/template/memory,share=on" in " ".join(list_words(frozen))
    for what in ("./vcpu", "./devices/controller[@model='pcie-root-port']"):
        assert len(frozen.findall(what)) == len(render(PROFILE, ALL, TEMPLATE).findall(what))
    private, shared = (
        " ".join(list_words(render(PROFILE, FACTS, TEMPLATE))),
        " ".join(list_words(render(PROFILE, ALL, TEMPLATE))),
    )
    assert "mem-path=/template/memory,share=off" in private and "memfd" not in private
    assert "memory-backend-memfd" in shared and "seal=off" in shared and "/template/memory" not in shared


@pytest.mark.parametrize(
    ("version", "readonly"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", False),
        ("QEMU emulator version 8.1.5", False),
        ("QEMU emulator version 8.2.0", True),
        ("QEMU emulator version 10.0.11 (Debian 1:10.0.11+ds-0+deb13u1)", True),
        ("something else", False),
    ],
)
def test_a_fork_cannot_change_the_memory_of_its_template_where_qemu_can_do_without(
    version: str, readonly: bool
) -> None:
    assert maps_readonly(version) is readonly
    template = replace(TEMPLATE, readonly=readonly)
    [backend] = [word for word in list_words(render(PROFILE, FACTS, template)) if "mem-path" in word]
    assert ("readonly=on,rom=off" in backend) is readonly and "share=off" in backend
    frozen = ElementTree.fromstring(
        render_template_domain(PROFILE.resources, FACTS, Identity("template"), PLACEHOLDER, template)
    )
    assert "readonly" not in " ".join(list_words(frozen))


def test_a_profile_with_mounts_shares_its_memory() -> None:
    assert shares_memory(replace(PROFILE, mounts=(Mount("./data", "/data"),)), FACTS) and not shares_memory(
        PROFILE, FACTS
    )


def test_a_saved_machine_keeps_what_it_was_made_with() -> None:
    root = render(PROFILE, ALL, TEMPLATE)
    before = list_words(root)
    drop_incoming(root)
    assert [word for word in before if word not in list_words(root)] == ["-incoming", "defer"]


@pytest.mark.parametrize(("most", "lendable"), [(0, 0), (2048, 0), (2100, 0), (2176, 128), (5000, 2944)])
def test_memory_is_lent_in_whole_blocks(most: int, lendable: int) -> None:
    assert find_hotpluggable(PROFILE.resources, HotplugReserve(memory=most)) == lendable


def test_a_plan_knows_it_again() -> None:
    text = '{"version": 1, "name": "p", "image": "debian-13-docker"}'
    loaded = load_profile(text, "p", lambda *_: ("", b""))
    plan = Plan(loaded.profile, ALL, Identity("one"), loaded.data)
    assert plan_from_json(plan.to_json()).facts.lending == ALL.lending
    older = plan.to_json()
    del older["facts"]["lending"]
    assert plan_from_json(older).facts.lending == HotplugReserve()


@pytest.mark.parametrize("vcpus", [1, 2, 16])
def test_a_vm_has_the_cpu_time_of_its_vcpus_and_of_one_cpu_more(vcpus: int) -> None:
    profile = replace(PROFILE, resources=replace(PROFILE.resources, vcpus=vcpus))
    limited = render(profile, replace(FACTS, cpu_controller=True))
    quota, period = (int(limited.findtext(f"./cputune/global_{name}", "0")) for name in ("quota", "period"))
    assert quota == (vcpus + 1) * period > 0
    assert render(profile, replace(FACTS, cpu_controller=False)).find("./cputune") is None
