"""The binding of libvirt: the modules of libvirt-python, and what they return as the program's own types and errors."""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from xml.etree import ElementTree

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.identity import METADATA_NAMESPACE

_INSTANCE = f"{{{METADATA_NAMESPACE}}}"


class DomainState(StrEnum):
    """libvirt's names of the states of a domain, in the order of virDomainState, whose numbers are part of libvirt's
    ABI."""

    NOSTATE = "nostate"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"
    UNKNOWN = "unknown"

    @property
    def is_alive(self) -> bool:
        """True while the VM exists, running or paused; False when it has ended or is about to."""
        return self not in (DomainState.SHUTDOWN, DomainState.SHUTOFF, DomainState.CRASHED)


_STATES = {number: state for number, state in enumerate(DomainState) if state is not DomainState.UNKNOWN}


@dataclass(frozen=True)
class DomainFacts:
    """A domain that carries our metadata."""

    name: str
    instance_id: str
    home: str
    mode: str
    state: DomainState
    persistent: bool


class _Binding:
    """A module of libvirt-python, imported on first use: it is compiled with the headers of libvirt, which plans do not
    need."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(importlib.import_module(self._module), name)
        except ImportError as error:
            raise HostError(
                f"the Python binding of libvirt cannot be imported: {error}",
                where=sys.prefix,
                hint=(
                    "install gcc, pkg-config, python3-dev and libvirt-dev, then `pip install 'ktrdr-vm[host]'`; in a"
                    " clone, `make setup`"
                ),
            ) from None


libvirt: Any = _Binding("libvirt")
libvirt_qemu: Any = _Binding("libvirt_qemu")


@functools.cache
def silence() -> None:
    # libvirt prints its errors on standard error besides raising them.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def read_facts(domain: Any) -> DomainFacts | None:
    """None for a domain without our metadata. An error is raised if the metadata could not be read."""
    try:
        raw = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    state = _STATES.get(domain.state()[0], DomainState.UNKNOWN)
    fields = {child.tag.removeprefix(_INSTANCE): child.text or "" for child in ElementTree.fromstring(raw)}  # noqa: S314 - libvirt's own
    return DomainFacts(
        domain.name(),
        fields.get("instance_id", ""),
        fields.get("home", ""),
        fields.get("mode", ""),
        state,
        bool(domain.isPersistent()),
    )


def describe_failure(doing: str, where: str, error: Any) -> ProvisionError:
    return ProvisionError(
        f"libvirt could not {doing}: {error.get_error_message()}", where=where, hint="`ktrdr-vm doctor` checks the host"
    )
