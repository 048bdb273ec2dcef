"""Every document of every shipped profile, rendered from fixed facts, compared and given to the program that will read
it."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.host.process import find_program
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.plan.facts import PLACEHOLDER, Allocation, Facts, ImageFacts, allocate
from ktrdr_vm.plan.guard_interface import GIVEN, GRANT_MAPS
from ktrdr_vm.plan.plan import Plan, canonical_json, plan_from_json
from ktrdr_vm.profile.egress_rule import EgressRule

EXPECTED = Path(__file__).parent / "expected"
PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))
NAMES = [path.stem for path in PROFILES]
HOME = "/var/lib/ktrdr-vm"
IMAGE = ImageFacts(
    "debian-13-docker", "d" * 64, f"{HOME}/images/{'d' * 64}", kernel_args="root=/dev/vda rw console=ttyS0"
)


def make_presets(names: set[str]) -> tuple[tuple[str, tuple[EgressRule, ...]], ...]:
    return tuple(
        (name, (EgressRule(host=f"{name}.mirror.example", ports=(443,), preset=name, reason=f"preset {name}"),))
        for name in sorted(names)
    )


def make_plan(path: Path, home: str = HOME, **changes: Any) -> Plan:
    """The plan of a profile on a host that never changes."""
    loaded = read_profile(path)
    presets = make_presets({rule.preset for rule in loaded.profile.egress.allow if rule.preset})
    settings: dict[str, Any] = {
        "accelerator": "tcg",
        "emulator": "/usr/bin/qemu-system-x86_64",
        "machine": "pc-q35-7.2",
        "home": home,
        "image": IMAGE,
        "owner_uid": 1000,
        "owner_gid": 1000,
        "workspace": "/home/someone/project",
        "base_ref": "main",
        "base_commit": "c" * 40,
        "playbooks": tuple((gate, hashlib.sha256(gate.encode()).hexdigest()) for gate in loaded.profile.gates),
        "presets": presets,
    }
    return Plan(loaded.profile, Facts(**settings | changes), parse_instance_id(f"golden--{path.stem}"), loaded.data)


def require_program(name: str) -> str:
    """A host without root's packages checks what it can; `make test` installs them, and counts what is skipped."""
    return str(find_program(name) or pytest.skip(f"{name} is not installed"))


def sample_allocation() -> Allocation:
    return allocate(
        7,
        genid="3b0d9a0e-58a2-4a6f-8ff5-6f6ab2a8a001",
        host_key="-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        host_public_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHost host",
        login_public_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILogin login",
    )


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_documents(path: Path, golden: Callable[[str, str], None]) -> None:
    plan = make_plan(path)
    for name, text in {**plan.render(), **plan.egress.name_lists}.items():
        golden(f"{path.stem}/{name}", text)
    accelerated = replace(plan, facts=replace(plan.facts, accelerator="kvm"))
    golden(f"{path.stem}/domain.kvm.xml", accelerated.render()["domain.xml"])
    golden(f"{path.stem}/plan.json", canonical_json(plan.to_json()))


def test_libvirt_asks_for_every_feature_where_the_cpu_is_that_of_the_host() -> None:
    """With KVM, the features of the CPU include some that QEMU reports one by one only."""
    emulated = make_plan(PROFILES[0]).render()["domain.xml"]
    accelerated = make_plan(PROFILES[0], accelerator="kvm").render()["domain.xml"]
    assert "cpu-unavailable-features" in emulated and "capabilities" not in accelerated


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in EXPECTED.iterdir()} == {*NAMES, "outside"}


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_the_same_inputs_give_the_same_digest(path: Path) -> None:
    assert make_plan(path).digest == make_plan(path).digest
    assert make_plan(path, base_commit="e" * 40).digest != make_plan(path).digest
    assert plan_from_json(make_plan(path).to_json()).digest == make_plan(path).digest


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_what_is_allocated_later_is_a_named_placeholder(path: Path) -> None:
    documents = make_plan(path).render()
    assert "PRIVATE KEY" not in "".join(documents.values())
    assert PLACEHOLDER.loopback in documents["ruleset-host.nft"]
    assert PLACEHOLDER.host_key in documents["user-data"]
    filled = make_plan(path).render(sample_allocation())
    filled["domain.xml"] = "".join(ElementTree.fromstring(filled["domain.xml"]).itertext())
    left = [
        value for value in vars(PLACEHOLDER).values() if value.startswith("<") and value in "".join(filled.values())
    ]
    assert left == []


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_libvirt_takes_the_domain(path: Path, accelerator: str) -> None:
    """The schema is libvirt's own; the test driver has neither our machine types nor our CPU, so these two are left out
    there."""
    libvirt: Any = pytest.importorskip("libvirt", reason="libvirt-python is compiled against headers that are not here")
    text = make_plan(path, accelerator=accelerator).render(sample_allocation())["domain.xml"]
    root = ElementTree.fromstring(text)
    root.set("type", "test")
    kind = root.find("./os/type")
    cpu = root.find("cpu")
    assert kind is not None and cpu is not None
    kind.attrib.pop("machine")
    kind.set("arch", "i686")
    root.remove(cpu)
    connection = libvirt.open("test:///default")
    try:
        domain = connection.defineXMLFlags(
            ElementTree.tostring(root, encoding="unicode"), libvirt.VIR_DOMAIN_DEFINE_VALIDATE
        )
        assert domain.name() == f"ktrdr-golden--{path.stem}"
        domain.undefine()
    finally:
        connection.close()


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_the_domain_has_nothing_that_a_sandbox_does_not_need(path: Path) -> None:
    root = ElementTree.fromstring(make_plan(path).render(sample_allocation())["domain.xml"])
    found = {child.tag for child in root.find("devices") or ()}
    assert found.isdisjoint(
        {
            "graphics",
            "video",
            "sound",
            "input",
            "hostdev",
            "redirdev",
            "parallel",
            "smartcard",
            "tpm",
            "shmem",
            "watchdog",
        }
    )
    assert [one.get("model") for one in root.findall("./devices/controller[@type='usb']")] == ["none"]
    assert [one.get("model") for one in root.findall("./devices/memballoon")] == ["none"]
    assert {one.get("type") for one in root.findall("./devices/disk/driver")} == {"qcow2", "raw"}
    assert all(one.get("type") for one in root.iter("driver"))
    assert {(one.get("policy"), one.get("name")) for one in root.findall("./cpu/feature")} >= {
        ("disable", "vmx"),
        ("disable", "svm"),
    }


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
@pytest.mark.parametrize("name", ["ruleset.nft", "ruleset-host.nft"])
def test_nft_takes_the_ruleset(path: Path, name: str) -> None:
    ruleset = make_plan(path).render(sample_allocation())[name]
    private = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    nft = require_program("nft")
    checked = subprocess.run(
        [*private, nft, "--check", "--file", "-"], input=ruleset, text=True, capture_output=True, timeout=30
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_haproxy_takes_the_configuration(path: Path, tmp_path: Path) -> None:
    haproxy = require_program("haproxy")
    plan = make_plan(path, home=str(tmp_path))
    folder = Path(plan.instance_directory, "guard")
    folder.mkdir(parents=True)
    for name, text in plan.egress.name_lists.items():
        (folder / name).write_text(text)
    for name in (GIVEN, *GRANT_MAPS):
        (folder / name).touch()
    (folder / "proxy.cfg").write_text(plan.render(sample_allocation())["proxy.cfg"])
    names = sorted(set(re.findall(r"KTRDR_FD_[A-Z]+", (folder / "proxy.cfg").read_text())))
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    try:
        checked = subprocess.run(
            [haproxy, "-c", "-f", str(folder / "proxy.cfg")],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                **{name: str(one.fileno()) for name, one in listeners.items()},
            },
            pass_fds=[one.fileno() for one in listeners.values()],
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        for one in listeners.values():
            one.close()
    assert checked.returncode == 0, checked.stderr
    assert "[ALERT]" not in checked.stderr


@pytest.mark.parametrize("path", PROFILES, ids=NAMES)
def test_cloud_init_documents_are_yaml_with_one_login(path: Path) -> None:
    documents = make_plan(path).render(sample_allocation())
    assert documents["user-data"].startswith("#cloud-config\n")
    user_data = yaml.safe_load(documents["user-data"])
    assert [user["lock_passwd"] for user in user_data["users"]] == [True]
    assert user_data["ssh_pwauth"] is False and user_data["disable_root"] is True
    assert user_data["ssh_keys"]["ed25519_private"] == sample_allocation().host_key
    assert yaml.safe_load(documents["meta-data"])["instance-id"] == f"golden--{path.stem}"
    network = yaml.safe_load(documents["network-config"])["ethernets"]["guest"]
    assert network["addresses"] == ["10.213.0.2/30"] and network["nameservers"]["addresses"] == ["10.213.0.1"]
    assert (network["dhcp4"], network["dhcp6"], network["link-local"]) == (False, False, [])


def test_profile_secrets_and_environment_stay_out_of_every_document(tmp_path: Path) -> None:
    profile = tmp_path / "secret.yaml"
    profile.write_text(
        "version: 1\nname: s\nimage: debian-13-docker\nenvironment: {COLOUR: magenta-7}\n"
        "secrets: [{name: token, source: {env: KTRDR_TOKEN}, path: /run/secrets/token}]\n"
    )
    documents = make_plan(profile).render(sample_allocation())
    assert "magenta-7" not in "".join(documents.values())
    assert "KTRDR_TOKEN" not in "".join(documents.values())
