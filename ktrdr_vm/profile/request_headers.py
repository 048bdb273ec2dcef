"""Which headers of a guest's request go on to a host that gets a brokered secret with it.

A list of what passes and not of what does not: any server may have a header of its own for another method, path, host,
client or owner, and a request with the secret acts as the secret's owner.
"""

from __future__ import annotations

import re

PASSED = (
    # HTTP's own words about content, ranges, conditions and caches (RFC 9110, 9111), and Transfer-Encoding, which the proxy frames anew.
    "accept", "accept-[a-z]+", "cache-control", "content-[a-z0-9]+", "date", "expect", "if-[a-z-]+", "pragma", "prefer", "range",
    "transfer-encoding", "user-agent",
    # Traces (W3C Trace Context) and a request's own name.
    "idempotency-key", "traceparent", "tracestate", "x-client-request-id", "x-correlation-id", "x-request-id",
    # What common clients of code forges, registries and model providers say about themselves and the version that they speak.
    "anthropic-[a-z-]+", "git-protocol", "graphql-features", "npm-(command|in-ci|scope|session)", "openai-beta", "time-zone",
    "x-github-(api-version|media-type|next-global-id)", "x-goog-api-client", "x-stainless-[a-z0-9-]+",
)  # fmt: skip
"""Regular expressions of whole names in lower case."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,59}")
_NEVER = re.compile(
    r"host|connection|te|trailer|upgrade|keep-alive|proxy-.*|http2-settings|forwarded|via|max-forwards"
    r"|authorization|cookie|.*-authorization|.*api-key|.*-token"
    r"|x-forwarded-.*|x-original-.*|x-rewrite-.*|x-http-method.*|.*-override|x-host"
)


def parse_passed_header(text: object) -> str:
    """A name that a profile adds, such as x-tenant. ValueError for a credential, for framing, and for another method, path or host."""
    name = text.lower() if isinstance(text, str) else ""
    if not _NAME.fullmatch(name):
        raise ValueError("a header's name has letters, digits and hyphens, 60 at most, and begins with a letter, such as x-tenant")
    if _NEVER.fullmatch(name):
        raise ValueError(f"{name} may say who asks, where or how; beside a secret the guest does not send it")
    return name


def match_passed(more: tuple[str, ...]) -> str:
    """A regular expression (PCRE) that matches each name that does not pass."""
    return f"^(?!({'|'.join((*PASSED, *more))})$)"
