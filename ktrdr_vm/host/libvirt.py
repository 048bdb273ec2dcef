"""The libvirtd of the host: one connection a process, domains identified by their metadata, errors as KtrdrError."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ktrdr_vm.errors import ForeignError, GuestError, HostError, ProvisionError
from ktrdr_vm.host.libvirt_binding import DomainFacts, describe_failure, libvirt, libvirt_qemu, read_facts, silence
from ktrdr_vm.users import in_user_namespace

URI = "qemu:///system"
# Seconds to wait for a restarted libvirtd. Without an earlier connection there is no wait.
RETURN_LIMIT = 30.0
# Seconds for a killed QEMU to end, and between two requests.
KILL_LIMIT = 180.0
_KILL_INTERVAL = 0.5


def parse_agent_reply(text: str, where: str) -> Any:
    """The return value in a reply of the guest agent, of any type and not trusted. GuestError for an invalid reply."""
    try:
        return json.loads(text).get("return")
    except (ValueError, AttributeError, RecursionError):
        raise GuestError(
            "the answer of the guest agent is not a valid reply",
            where=where,
            hint="the guest is broken or hostile; destroy the instance",
        ) from None


class Libvirt:
    """One connection to the libvirtd of the system, opened on first use and again after it was lost.

    `patience` is the number of seconds to wait for a libvirtd that had answered before, and for that of a world, which
    is started again.
    """

    def __init__(self, uri: str = URI, *, patience: float = RETURN_LIMIT) -> None:
        self._uri = uri
        self._patience = patience
        self._connection: Any = None

    def connect(self) -> Any:
        silence()
        if self._is_alive():
            return self._connection
        end = time.monotonic() + (self._patience if self._connection is not None or in_user_namespace() else 0.0)
        while True:
            try:
                self._connection = libvirt.open(self._uri)
                return self._connection
            except libvirt.libvirtError as error:
                if time.monotonic() >= end:
                    self._connection = None
                    raise HostError(
                        f"libvirtd does not answer: {error.get_error_message()}",
                        where=self._uri,
                        hint=(
                            "`systemctl start libvirtd`, or without systemd `virtlogd -d` and `libvirtd -d`; in a"
                            " clone, `make setup`"
                        ),
                    ) from None
            time.sleep(0.2)

    def _is_alive(self) -> bool:
        try:
            return self._connection is not None and bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _ask(self, doing: str, where: str, question: Callable[[Any], Any]) -> Any:
        """Run a read-only query, and repeat it if libvirtd was restarted meanwhile. None if the domain does not
        exist."""
        for last in (False, True):
            connection = self.connect()
            try:
                return question(connection)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                if last or self._is_alive():
                    raise describe_failure(doing, where, error) from None
        raise AssertionError("called after the answer")

    def read_capabilities(self) -> str:
        """The capabilities XML of libvirt."""
        return str(self._ask("read the capabilities", self._uri, lambda connection: connection.getCapabilities()))

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def find(self, name: str) -> DomainFacts | None:
        """The domain of that name, or None. ForeignError if it does not belong to ktrdr-vm."""
        found = self._ask("find the domain", name, lambda connection: (read_facts(connection.lookupByName(name)),))
        if found == (None,):
            raise ForeignError(
                f"the domain {name} exists and was not created by ktrdr-vm",
                where=self._uri,
                hint="choose another --instance-id; ktrdr-vm never changes objects that it did not create",
            )
        return found[0] if found else None

    def list_unmarked(self, prefix: str) -> list[str]:
        """Domains whose name begins with our prefix and that lack our metadata."""
        ours = {facts.name for facts in self.list_ours()}
        return sorted(name for name in self._list_names() if name.startswith(prefix) and name not in ours)

    def _list_names(self) -> list[str]:
        return list(
            self._ask(
                "list the domains", self._uri, lambda connection: [one.name() for one in connection.listAllDomains()]
            )
        )

    def list_ours(self) -> list[DomainFacts]:
        """All domains with our metadata, of any state directory."""
        found = []
        for name in self._list_names():
            with contextlib.suppress(ForeignError):
                facts = self.find(name)
                if facts is not None:
                    found.append(facts)
        return sorted(found, key=lambda facts: facts.name)

    def start(self, name: str, xml: str, *, persistent: bool, paused: bool = False) -> None:
        """Start the domain. A transient domain leaves no definition when it ends."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        try:
            connection = self.connect()
            if persistent:
                domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
                if not domain.isActive():
                    domain.createWithFlags(flags)
            else:
                connection.createXML(xml, flags | libvirt.VIR_DOMAIN_START_VALIDATE)
        except libvirt.libvirtError as error:
            raise describe_failure("start the domain", name, error) from None

    def stop(self, name: str) -> None:
        """Destroy and undefine the domain; idempotent."""
        if self.find(name) is None:
            return
        domain = self._lookup(name)
        if domain is None:
            return
        for attempt in (self._destroy, self._undefine):
            try:
                attempt(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    raise describe_failure("stop the domain", name, error) from None

    @staticmethod
    def _destroy(domain: Any) -> None:
        """libvirt waits about 30 s for a QEMU that it has killed. One in a long write to a slow disk ends later."""
        end = time.monotonic() + KILL_LIMIT
        while domain.isActive():
            try:
                domain.destroy()
                return
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_SYSTEM_ERROR or time.monotonic() >= end:
                    raise
            time.sleep(_KILL_INTERVAL)

    @staticmethod
    def _undefine(domain: Any) -> None:
        if domain.isPersistent():
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            )

    def save(self, name: str, path: Path) -> None:
        """Save a running domain to a file and end it. If this fails, the domain continues."""
        try:
            self._require(name).saveFlags(str(path), None, 0)
        except libvirt.libvirtError as error:
            raise describe_failure("save the domain", name, error) from None

    def restore(self, path: Path, change: Callable[[ElementTree.Element], None]) -> None:
        """Restore a domain from a file of `save`, with changed XML, paused. The file is kept."""
        connection = self.connect()
        try:
            xml = ElementTree.fromstring(connection.saveImageGetXMLDesc(str(path)))  # noqa: S314 - libvirt's own
            change(xml)
            connection.restoreFlags(
                str(path), ElementTree.tostring(xml, encoding="unicode"), libvirt.VIR_DOMAIN_SAVE_PAUSED
            )
        except libvirt.libvirtError as error:
            raise describe_failure("restore the domain", str(path), error) from None

    def read_saved_name(self, path: Path) -> str:
        """The name of the domain in a complete file of `save`; libvirt refuses an incomplete one."""
        try:
            xml = ElementTree.fromstring(self.connect().saveImageGetXMLDesc(str(path)))  # noqa: S314 - libvirt's own
        except libvirt.libvirtError as error:
            raise describe_failure("read the saved state", str(path), error) from None
        return xml.findtext("name") or ""

    def define(self, xml: str) -> None:
        """Define a domain."""
        try:
            self.connect().defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        except libvirt.libvirtError as error:
            raise describe_failure("define the domain", self._uri, error) from None

    def attach(self, name: str, device_xml: str) -> None:
        self._device(name, "attach", device_xml)

    def detach(self, name: str, device_xml: str) -> None:
        self._device(name, "detach", device_xml)

    def _device(self, name: str, verb: str, device_xml: str) -> None:
        domain = self._require(name)
        try:
            getattr(domain, f"{verb}DeviceFlags")(device_xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise describe_failure(f"{verb} a device", name, error) from None

    def set_vcpus(self, name: str, count: int) -> None:
        """Hot-plug vCPUs, or hot-unplug them; ProvisionError if the guest does not release them."""
        try:
            self._require(name).setVcpusFlags(count, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise describe_failure(f"set {count} vCPUs of", name, error) from None

    def count_vcpus(self, name: str) -> int:
        """The number of vCPUs of a running domain, including hot-plugged ones."""
        try:
            return int(self._require(name).vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_LIVE))
        except libvirt.libvirtError as error:
            raise describe_failure("count the vCPUs of", name, error) from None

    def limit_cpu_time(self, name: str, quota: int) -> None:
        """Limit the CPU time of a running domain: microseconds in each period of its XML."""
        try:
            self._require(name).setSchedulerParametersFlags({"global_quota": quota}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise describe_failure("limit the CPU time of", name, error) from None

    def monitor(
        self, name: str, execute: str, arguments: dict[str, Any] | None = None, *, files: tuple[int, ...] = ()
    ) -> Any:
        """The return value of one QMP command. `files` are descriptors that are passed with it."""
        command = json.dumps({"execute": execute, **({"arguments": arguments} if arguments else {})})
        try:
            domain = self._require(name)
            if files:
                raw, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, command, list(files), 0)
            else:
                raw = libvirt_qemu.qemuMonitorCommand(domain, command, 0)
        except libvirt.libvirtError as error:
            raise describe_failure(f"execute {execute} in QEMU", name, error) from None
        reply = json.loads(raw)
        if "error" in reply:
            raise ProvisionError(
                f"QEMU refused {execute}: {reply['error'].get('desc')}",
                where=name,
                hint="`ktrdr-vm doctor` checks the host",
            )
        return reply.get("return")

    def agent(self, name: str, execute: str, arguments: dict[str, Any] | None = None, *, timeout: int = 5) -> Any:
        """The return value of one command of the guest agent. None if the agent does not answer (yet), or no longer
        because the VM has ended."""
        command = json.dumps({"execute": execute, **({"arguments": arguments} if arguments else {})})
        domain = self._lookup(name)
        try:
            return (
                parse_agent_reply(libvirt_qemu.qemuAgentCommand(domain, command, timeout, 0), name) if domain else None
            )
        except libvirt.libvirtError:
            return None

    def suspend(self, name: str) -> None:
        self._act(name, "suspend")

    def resume(self, name: str) -> None:
        self._act(name, "resume")

    def _act(self, name: str, verb: str) -> None:
        try:
            getattr(self._require(name), verb)()
        except libvirt.libvirtError as error:
            raise describe_failure(f"{verb} the domain", name, error) from None

    def measure(self, name: str) -> tuple[float, int, int] | None:
        """CPU seconds since its start, resident memory and disk usage on the host in bytes; None if it does not run."""
        domain = self._lookup(name)
        if domain is None:
            return None
        try:
            nanoseconds = int(domain.info()[4])
            memory = int(domain.memoryStats().get("rss", 0)) * 1024
            disk = int(domain.blockInfo("vda")[1])
        except libvirt.libvirtError:
            return None  # it ended meanwhile
        return nanoseconds / 1e9, memory, disk

    def describe(self, name: str) -> str:
        """The live XML."""
        try:
            return str(self._require(name).XMLDesc())
        except libvirt.libvirtError as error:
            raise describe_failure("read the domain", name, error) from None

    def _require(self, name: str) -> Any:
        domain = self._lookup(name)
        if domain is None:
            raise ProvisionError(
                f"the domain {name} does not exist",
                where=self._uri,
                hint="`ktrdr-vm status` shows the remaining resources of the instance",
            )
        return domain

    def _lookup(self, name: str) -> Any:
        return self._ask("find the domain", name, lambda connection: connection.lookupByName(name))
