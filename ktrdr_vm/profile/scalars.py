"""The small values of a profile, read from text: sizes, durations, modes, names, paths. Each raises ValueError with a
reason."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""The methods that a broker can forward. TRACE would return the credential, CONNECT would open a tunnel."""
MAX_HEADER = 4096
# Linux limits one argument or variable to 128 KiB with its name.
MAX_WORD = 120 << 10

Scalar = str | int | float | bool | None

_SIZE = re.compile(r"([0-9]{1,9}) ?(MiB|GiB|TiB)")
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HEADER = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9-]{0,62}): (?P<before>[ -z|~]*)"
    r"\{\{ (?:secret|\('(?P<user>[A-Za-z0-9._@-]{1,64}):' ~ secret\) \| b64encode) \}\}(?P<after>[ -z|~]*)"
)
_FRAMING = {
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "proxy-connection",
}
_URL_PREFIX = re.compile(r"/(?:[A-Za-z0-9._~-]+/)*(?:[A-Za-z0-9._~-]+)?")
_SIZES = {"MiB": 1, "GiB": 1024, "TiB": 1024 * 1024}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


# MiB and seconds: larger values are mistakes, and would overflow later date arithmetic.
MAX_SIZE = 1024 << 20
MAX_SECONDS = 366 * 86400


def parse_size(text: object) -> int:
    """`2GiB` as 2048 MiB."""
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError("must be a number with MiB, GiB or TiB, such as 2GiB")
    size = int(match[1]) * _SIZES[match[2]]
    if size > MAX_SIZE:
        raise ValueError(f"must be at most {MAX_SIZE >> 20}TiB")
    return size


def parse_duration(text: object) -> int:
    """`2h` as 7200 seconds."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError("must be a number with s, m, h or d, such as 30m")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_SECONDS:
        raise ValueError(f"must be at most {MAX_SECONDS // 86400}d")
    return seconds


def parse_file_mode(text: object) -> int:
    """`"0400"` as 0o400. Nothing beyond the permission bits; no access for others."""
    if not isinstance(text, str) or not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError('must be a mode of octal digits in quotes, such as "0400"')
    mode = int(text, 8)
    if mode & 0o007:
        raise ValueError("other users may not read a secret: the last digit must be 0")
    return mode


def parse_host(text: object) -> str:
    """A DNS name in lower case, exact or `*.` and at least two labels."""
    if not isinstance(text, str) or len(text) > 253 or not _HOST.fullmatch(text):
        raise ValueError(
            "must be a DNS name in lower case with a dot, such as api.example.com, or *. and at least two labels"
        )
    if text.rsplit(".", 1)[-1].isdigit():
        raise ValueError("is an address; use cidr instead of host")
    return text


def parse_exact_host(text: object) -> str:
    """A DNS name without a wildcard."""
    host = parse_host(text)
    if host.startswith("*"):
        raise ValueError("must be one exact name, because a credential is for one host")
    return host


@dataclass(frozen=True)
class HeaderTemplate:
    """A request header made of a secret: the secret as it is, or base64 of a user, a colon and the secret."""

    name: str
    before: str
    after: str
    user: str = ""

    def render(self, secret: bytes) -> str:
        """The header's value. ValueError if the secret is not valid in a header."""
        value = secret.strip(b"\r\n")
        if self.user:
            value = base64.b64encode(f"{self.user}:".encode() + value)
        text = self.before + value.decode("ascii", "replace") + self.after
        if not value or not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", text) or len(text) > MAX_HEADER:
            raise ValueError(f"must be one line of visible ASCII characters, {MAX_HEADER} at most as a header")
        return text


def parse_header_template(text: object) -> HeaderTemplate:
    """`x-api-key: {{ secret }}`, or for HTTP's basic authentication `Authorization: Basic {{ ('user:' ~ secret) |
    b64encode }}`."""
    match = _HEADER.fullmatch(text) if isinstance(text, str) and len(text) <= 500 else None
    if match is None:
        raise ValueError(
            'must be a name and a value with {{ secret }} once, such as "x-api-key: {{ secret }}", or with '
            "{{ ('user:' ~ secret) | b64encode }}"
        )
    name = match["name"].lower()
    if name in _FRAMING:
        raise ValueError(f"{name} controls the destination or the end of a request, so it cannot contain a credential")
    return HeaderTemplate(name, match["before"], match["after"], match["user"] or "")


def parse_url_prefix(text: object) -> str:
    """A prefix of the path of a URL, such as /v1/; without a trailing slash it ends with a whole segment."""
    if (
        not isinstance(text, str)
        or len(text) > 200
        or not _URL_PREFIX.fullmatch(text)
        or {".", ".."} & set(text.split("/"))
    ):
        raise ValueError(
            "must be a path such as /v1/: letters, digits and -._~ between single slashes, without . and .."
        )
    return text


def parse_cidr(text: object) -> IPv4Network:
    """An IPv4 range of at most a /8, without host bits."""
    try:
        network = ip_network(text if isinstance(text, str) else "", strict=True)
    except ValueError as error:
        raise ValueError(f"must be an IPv4 range such as 198.51.100.7/32: {error!s:.200}") from None
    if not isinstance(network, IPv4Network):
        raise ValueError("must be an IPv4 range, because the guest has no IPv6 network")
    if network.prefixlen < 8:
        raise ValueError("must not be larger than a /8")
    return network


def parse_environment_name(text: object) -> str:
    if not isinstance(text, str) or not _ENV.fullmatch(text):
        raise ValueError("must be the name of an environment variable")
    return text


def parse_word(text: object) -> str:
    """A word of a command, or the value of a variable. The kernel allows no NUL and less than 128 KiB in one."""
    if not isinstance(text, str) or "\0" in text or len(text.encode("utf-8", "surrogatepass")) > MAX_WORD:
        raise ValueError(f"must be text without NUL, of at most {MAX_WORD >> 10} KiB")
    return text


def parse_plain_text(text: object) -> str:
    """Text for people: one line of printable characters, without control, direction and other separator characters."""
    if not isinstance(text, str) or len(text) > 500 or not text.isprintable():
        raise ValueError("must be one line of printable text, 500 characters at most")
    return text


def parse_guest_path(text: object) -> str:
    """An absolute, normal path in the guest."""
    plain = parse_plain_text(text)
    parts = plain.split("/")
    if not plain.startswith("/") or plain == "/" or any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError("must be an absolute path without `.`, `..`, double slashes or a trailing slash")
    return plain


def parse_gate(text: object) -> str:
    """A gate's name, or a path in the workspace."""
    plain = parse_host_path(text)
    if plain.startswith("/"):
        raise ValueError("must be the name of a gate, or a path relative to the workspace")
    return plain


def parse_host_path(text: object) -> str:
    """A path on the host as written: literal, without `..`, `~` or variables."""
    plain = parse_plain_text(text)
    if not plain or plain.startswith("~") or ".." in plain.split("/") or "$" in plain:
        raise ValueError("must be a literal path without .., ~ or variables")
    return plain
