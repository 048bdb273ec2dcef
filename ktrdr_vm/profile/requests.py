"""Requests that the guard forwards from a URL of the gateway, by method and path; and what in a profile would make that
void. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# One port of the gateway each.
MOST_ROUTES = 50
_KEYS = ("methods", "paths")
# Keys of a rule that say how the guest sends such requests.
_USE_KEYS = ("base_url_env", "base_path", "headers")

Errors = Iterator[tuple[tuple[str | int, ...], str]]


@dataclass(frozen=True, order=True, kw_only=True)
class Requests:
    """Requests to one host over verified TLS. `base_url_env` is the variable of the guest with the URL to use in place
    of the host."""

    host: str
    base_url_env: str
    base_path: str = "/"
    methods: tuple[str, ...] = ("GET", "HEAD")
    paths: tuple[str, ...] = ("/",)
    headers: tuple[str, ...] = ()
    """Names of request headers in lower case that are forwarded in addition to `request_headers.PASSED`."""

    def describe(self) -> str:
        return f"{','.join(self.methods)} {','.join(self.paths)}"

    def covers(self, other: Requests) -> bool:
        """True if each request that `other` allows is allowed by this one, whatever the hosts are."""
        paths = all(any(_is_beneath(path, bound) for bound in self.paths) for path in other.paths)
        return paths and set(other.methods) <= set(self.methods)


def _is_beneath(path: str, bound: str) -> bool:
    """True if the prefix `path` matches no more than the prefix `bound`. Without a slash at its end, a prefix is whole
    segments."""
    return path == bound or path.startswith(bound if bound.endswith("/") else f"{bound}/")


def parse_requests(data: dict[str, Any]) -> Requests:
    """The keys of a broker or of a rule that have passed the schema. An entry of the owner's ceiling has no
    variable."""
    return Requests(**read_keys(data))


def read_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Them as arguments of `Requests`."""
    return {
        "host": data["host"],
        "base_url_env": data.get("base_url_env", ""),
        "base_path": data.get("base_path", "/"),
        "methods": tuple(sorted(set(data.get("methods", ("GET", "HEAD"))))),
        "paths": tuple(sorted(set(data.get("paths", ("/",))))),
        "headers": tuple(sorted({name.lower() for name in data.get("headers", ())})),
    }


def is_limited(rule: dict[str, Any]) -> bool:
    """True if an entry of an allowlist allows some requests to its host, and no connections."""
    return any(key in rule for key in _KEYS)


def check_requests(data: dict[str, Any]) -> Errors:
    """Errors of rules with methods or paths in a merged document: what could not be enforced is refused."""
    egress = data.get("egress") or {}
    rules: list[dict[str, Any]] = egress.get("allow") or []
    for index, rule in enumerate(rules):
        place = ("egress", "allow", index)
        if not is_limited(rule):
            for key in _USE_KEYS:
                if key in rule:
                    yield (
                        (*place, key),
                        "requires methods or paths; without these, the guest connects to the host itself",
                    )
            continue
        if rule["host"].startswith("*."):
            yield (*place, "host"), "methods and paths need one exact name, because a base URL has one host"
        if "base_url_env" not in rule:
            yield (
                place,
                (
                    "methods and paths are checked at a URL of the gateway, because TLS to the host is not ended: set"
                    " base_url_env to the variable that the client reads its base URL from. A client without one can"
                    " only be allowed the whole host"
                ),
            )
        for number, other in enumerate(rules):
            if not is_limited(other) and _opens(other, rule["host"]):
                yield (
                    (*place, "host"),
                    f"egress.allow[{number}] allows {other['host']} without methods and paths, and so every request",
                )
        if egress.get("mode") == "observe":
            yield place, "methods and paths are void in observe mode, which allows every request"
    brokers = sum("broker" in secret for secret in data.get("secrets", []))
    if brokers + sum(map(is_limited, rules)) > MOST_ROUTES:
        yield (
            ("egress", "allow"),
            f"together with brokered secrets, at most {MOST_ROUTES} rules can have methods or paths",
        )


def _opens(rule: dict[str, Any], host: str) -> bool:
    """True if the rule allows connections to the host on a port for HTTP."""
    name = rule.get("host", "")
    return bool({80, 443} & set(rule.get("ports", [443]))) and (
        name == host or (name.startswith("*.") and host.endswith(name[1:]))
    )
