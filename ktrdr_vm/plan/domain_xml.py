"""The libvirt domain: q35, virtio devices only, without unneeded devices. Built from data, so that nothing can be
injected."""

from __future__ import annotations

from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ktrdr_vm.identity import METADATA_NAMESPACE, Identity
from ktrdr_vm.plan.domain_memory import QEMU_NAMESPACE, render_commandline
from ktrdr_vm.plan.facts import Allocation, Facts, TemplateFacts
from ktrdr_vm.plan.guard_interface import GUEST_MAC
from ktrdr_vm.profile.model import ImageRef, Profile, Size

AGENT_CHANNEL = "org.qemu.guest_agent.0"
# QEMU 7.2's emulation of its `max` model makes Debian 13's glibc abort (docs/adr/0002). This one is x86-64-v2, which is
# what current container images are built for, with AES in hardware; it boots as fast as qemu64.
EMULATED_CPU = "Westmere"
# Root ports: six for the devices here, the others for hot-plug of virtiofs mounts; the last for
# virtio-mem. The number is constant, because a fork must have the hardware of its template.
_PORTS = 13

ElementTree.register_namespace("ktrdr", METADATA_NAMESPACE)


def element(tag: str, text: str = "", /, *children: Element, **attributes: str) -> Element:
    """One XML element. A trailing underscore in the name of an attribute is removed, for reserved words of Python."""
    made = Element(tag, {name.rstrip("_"): value for name, value in attributes.items()})
    made.text = text or None
    made.extend(children)
    return made


def to_text(root: Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def shares_memory(profile: Profile, facts: Facts) -> bool:
    """True if the memory must be shared with virtiofsd."""
    return bool(profile.mounts) or facts.lending.mounts


class _Disk(NamedTuple):
    """An overlay, and its backing chain from the top: file and format."""

    overlay: str
    layers: tuple[tuple[str, str], ...]


def render_domain(
    profile: Profile,
    facts: Facts,
    identity: Identity,
    allocation: Allocation,
    instance_directory: str,
    template: TemplateFacts | None = None,
) -> str:
    """The XML of the domain. With a template it is a fork: the memory of the template, waiting for its state."""
    shared = shares_memory(profile, facts)
    disk = _Disk(f"{instance_directory}/overlay.qcow2", _list_layers(facts, template))
    root = _render(profile, facts, identity, allocation, instance_directory, disk, shared=shared)
    thawed = template if template is not None and template.thaw else None
    _append_commandline(
        root, render_commandline(profile.resources, facts.lending, port=_PORTS, template=thawed, shared=shared)
    )
    return to_text(root)


def render_template_domain(
    size: Size, facts: Facts, identity: Identity, allocation: Allocation, template: TemplateFacts
) -> str:
    """The domain of a template: no mount, nothing of a profile, its memory in a file."""
    profile = Profile(name="template", image=ImageRef(recipe=facts.image.name), resources=size)
    disk = _Disk(template.disk, _list_layers(facts, template)[1:])
    root = _render(profile, facts, identity, allocation, template.directory, disk)
    _append_commandline(root, render_commandline(size, facts.lending, port=_PORTS, template=template, frozen=True))
    return to_text(root)


def _append_commandline(root: Element, line: Element) -> None:
    if len(line):
        root.append(line)


def _render(
    profile: Profile,
    facts: Facts,
    identity: Identity,
    allocation: Allocation,
    directory: str,
    disk: _Disk,
    *,
    shared: bool = False,
) -> Element:
    size = profile.resources
    root = element("domain", type=_domain_type(facts))
    root.append(element("name", identity.domain))
    root.append(element("uuid", identity.uuid))
    root.append(element("genid", allocation.genid))
    root.append(element("title", f"ktrdr-vm {identity.instance_id}"))
    root.append(_metadata(profile, facts, identity))
    root.append(element("memory", str(size.memory), unit="MiB"))
    if shared:
        root.append(element("memoryBacking", "", element("source", type="memfd"), element("access", mode="shared")))
    current = {"current": str(size.vcpus)} if facts.lending.vcpus > size.vcpus else {}
    root.append(element("vcpu", str(max(size.vcpus, facts.lending.vcpus)), placement="static", **current))
    if facts.cpu_controller:
        root.append(_cpu_limit(size.vcpus))
    root.append(_boot(facts, directory))
    root.append(
        element(
            "features",
            "",
            element("acpi"),
            element("apic"),
            element("pmu", state="off"),
            element("vmport", state="off"),
        )
    )
    root.append(_cpu(facts))
    root.append(element("clock", "", element("timer", name="hpet", present="no"), offset="utc"))
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        root.append(element(event, action))
    root.append(_devices(profile, facts, identity, directory, disk))
    if facts.accelerator == "tcg":
        root.append(_capabilities())
    return root


def _list_layers(facts: Facts, template: TemplateFacts | None) -> tuple[tuple[str, str], ...]:
    """The backing chain of an overlay, from the top: file and format."""
    layers = ((facts.image.disk, facts.image.disk_format),)
    if template is None:
        return layers
    project = ((template.project, "qcow2"),) if template.has_project else ()
    return ((template.disk, "qcow2"), *project, *layers)


def _domain_type(facts: Facts) -> str:
    return "kvm" if facts.accelerator == "kvm" else "qemu"


def _metadata(profile: Profile, facts: Facts, identity: Identity) -> Element:
    def named(tag: str, text: str) -> Element:
        return element(f"{{{METADATA_NAMESPACE}}}{tag}", text)

    instance = element(
        f"{{{METADATA_NAMESPACE}}}instance",
        "",
        named("instance_id", identity.instance_id),
        named("home", facts.home),
        named("mode", profile.mode),
        named("profile", profile.name),
        named("image", facts.image.digest),
    )
    return element("metadata", "", instance)


def make_quota(vcpus: int) -> int:
    """Microseconds of CPU time in each 100,000, for the vCPUs and one CPU more for other threads of QEMU, so that a
    guest with busy devices uses no further cores."""
    return (vcpus + 1) * 100000


def _cpu_limit(vcpus: int) -> Element:
    return element("cputune", "", element("global_period", "100000"), element("global_quota", str(make_quota(vcpus))))


def _boot(facts: Facts, directory: str) -> Element:
    """Kernel and initrd are copies for the instance, because libvirt gives them to the user of QEMU while the VM
    runs."""
    kind = element("type", "hvm", arch="x86_64", machine=facts.machine)
    if facts.image.boot == "disk":
        return element("os", "", kind, element("boot", dev="hd"))
    return element(
        "os",
        "",
        kind,
        element("kernel", f"{directory}/vmlinuz"),
        element("initrd", f"{directory}/initrd"),
        element("cmdline", make_kernel_arguments(facts)),
    )


def make_kernel_arguments(facts: Facts) -> str:
    """Those of the image, and under emulation no address randomisation: translated code is cached by its address, so
    otherwise the next process of the same program cannot use it. Starting a program takes half the time without
    (docs/adr/0007)."""
    return f"{facts.image.kernel_args} norandmaps" if facts.accelerator == "tcg" else facts.image.kernel_args


def _capabilities() -> Element:
    """Let libvirt ask QEMU for the features of the CPU in three calls, and not in one for each of its 400 properties,
    which takes a quarter of a second.

    Only under emulation: of the CPU of a host, these calls do not report the features in MSRs (docs/adr/0019).
    """
    namespaced = f"{{{QEMU_NAMESPACE}}}"
    removed = element(f"{namespaced}del", capability="cpu-unavailable-features")
    return element(f"{namespaced}capabilities", "", removed)


def _cpu(facts: Facts) -> Element:
    # No nested virtualisation, to reduce the attack surface of the host.
    hidden = [element("feature", policy="disable", name=name) for name in ("vmx", "svm")]
    if facts.accelerator == "kvm":
        return element("cpu", "", *hidden, mode="host-model", check="partial")
    return element(
        "cpu",
        "",
        element("model", EMULATED_CPU, fallback="forbid"),
        *hidden,
        mode="custom",
        match="exact",
        check="none",
    )


def _devices(
    profile: Profile,
    facts: Facts,
    identity: Identity,
    directory: str,
    disk: _Disk,
) -> Element:
    devices = element("devices", "", element("emulator", facts.emulator))
    # A disposable disk is never read after a crash of the host, so flushes are not needed.
    cache = "unsafe" if profile.mode == "sandbox" else "writeback"
    backing = element("backingStore")
    for number, (file, format_) in enumerate(reversed(disk.layers)):
        below = () if number == 0 else (backing,)
        source = element("source", "", _unlabelled(), file=file)
        backing = element("backingStore", "", element("format", type=format_), source, *below, type="file")
    devices.append(
        element(
            "disk",
            "",
            element("driver", name="qemu", type="qcow2", cache=cache, discard="unmap", detect_zeroes_="unmap"),
            element("source", file=disk.overlay),
            backing,
            element("target", dev="vda", bus="virtio"),
            type="file",
            device="disk",
        )
    )
    devices.append(
        element(
            "disk",
            "",
            element("driver", name="qemu", type="raw", cache="unsafe"),
            # libvirt gives it to the user of QEMU: it contains the SSH host key of the guest, which no other user may
            # read.
            element("source", file=f"{directory}/seed.iso"),
            element("target", dev="vdb", bus="virtio"),
            element("readonly"),
            type="file",
            device="disk",
        )
    )
    devices.append(element("controller", type="usb", model="none"))
    devices.append(element("controller", type="pci", model="pcie-root"))
    for _ in range(_PORTS):
        devices.append(element("controller", type="pci", model="pcie-root-port"))
    devices.append(_render_interface(identity))
    log = element("log", file=f"{directory}/console.log", append="on")
    devices.append(element("serial", "", log, element("target", port="0"), type="pty"))
    devices.append(element("console", "", element("target", type="serial", port="0"), type="pty"))
    devices.append(element("channel", "", element("target", type="virtio", name=AGENT_CHANNEL), type="unix"))
    devices.append(element("rng", "", element("backend", "/dev/urandom", model="random"), model="virtio"))
    devices.append(element("memballoon", model="none"))
    return devices


def _render_interface(identity: Identity) -> Element:
    """The NIC on the tap of the instance, which libvirt does not configure."""
    return element(
        "interface",
        "",
        element("mac", address=GUEST_MAC),
        element("target", dev=identity.tap, managed="no"),
        element("model", type="virtio"),
        element("rom", enabled="no"),
        type="ethernet",
    )


def _unlabelled() -> Element:
    # The file is readable for all users who may traverse to it; libvirt must not change its owner, as other instances
    # use it.
    return element("seclabel", model="dac", relabel="no")
