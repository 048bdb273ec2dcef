"""The owner's telemetry collector: its address and its credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from ktrdr_vm.profile import scalars

_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?(?P<path>(/[A-Za-z0-9._~-]+)*)/?")
_PORTS = {"http": 4318, "https": 443}


@dataclass(frozen=True)
class Collector:
    """`host` is a name or an IPv4 address; connections go to `address` only, if it is set. `path` has no trailing
    slash.

    Its headers are secret, and stored in `headers_file` only.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    address: str = ""
    headers_file: str = ""
    ca_file: str = ""

    @property
    def url(self) -> str:
        """The base of every signal's URL."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def parse_collector(data: dict[str, Any]) -> Collector:
    """The collector of the mapping `telemetry`. ValueError for an invalid URL or address."""
    match = _URL.fullmatch(data["collector"])
    if match is None or not 0 < int(match["port"] or 1) < 65536:
        raise ValueError(
            "must be a URL such as http://127.0.0.1:4318 or https://otlp.example.com, without a user name or password"
        )
    host, address = match["host"], data.get("address", "")
    if host.replace(".", "").isdigit():
        if address not in ("", parse_address(host)):
            raise ValueError("the address in the URL and `address` are different")
        address = host
    else:
        scalars.parse_host(host)
    return Collector(
        scheme=match["scheme"],
        host=host,
        port=int(match["port"] or _PORTS[match["scheme"]]),
        path=match["path"],
        address=address,
        headers_file=data.get("headers_file", ""),
        ca_file=data.get("ca_file", ""),
    )


def parse_address(text: object) -> str:
    """An IPv4 address as text."""
    try:
        return str(IPv4Address(str(text)))
    except AddressValueError as error:
        raise ValueError(f"not an IPv4 address: {error}") from None


def parse_headers(text: str) -> dict[str, str]:
    """One header a line, as `name: value`; empty lines and lines that begin with # are ignored. ValueError for an
    invalid header."""
    headers = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        value = value.strip()
        if (
            not colon
            or not name.replace("-", "").isalnum()
            or not name.isascii()
            or not value.isascii()
            or not value.isprintable()
        ):
            raise ValueError(f"line {number} is not a header such as `Authorization: Bearer …`")
        headers[name] = value
    return headers
