"""The headers of a request that are forwarded to the host of a brokered secret.

This is an allowlist, because any server may define a header that changes the method, path, host,
client or owner of a request, which has the privileges of the secret.
"""

from __future__ import annotations

import re

PASSED = (
    # Headers of HTTP for content, ranges, conditions and caches (RFC 9110, 9111), and Transfer-Encoding, which the
    # proxy sets itself.
    "accept",
    "accept-[a-z]+",
    "cache-control",
    "content-[a-z0-9]+",
    "date",
    "expect",
    "if-[a-z-]+",
    "pragma",
    "prefer",
    "range",
    "transfer-encoding",
    "user-agent",
    # W3C Trace Context and request ids.
    "idempotency-key",
    "traceparent",
    "tracestate",
    "x-client-request-id",
    "x-correlation-id",
    "x-request-id",
    # Client and API versions, as sent by common clients of code forges, registries and model providers.
    "anthropic-[a-z-]+",
    "git-protocol",
    "graphql-features",
    "npm-(command|in-ci|scope|session)",
    "openai-beta",
    "time-zone",
    "x-github-(api-version|media-type|next-global-id)",
    "x-goog-api-client",
    "x-stainless-[a-z0-9-]+",
)
"""Regular expressions of whole names in lower case."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,59}")
_NEVER = re.compile(
    r"host|connection|te|trailer|upgrade|keep-alive|proxy-.*|http2-settings|forwarded|via|max-forwards"
    r"|authorization|cookie2?|.*-authorization|.*api-?key|(.*-)?(auth|token|secret|password)|.*-(auth|access)-key"
    r"|x-forwarded-.*|x-original-.*|x-rewrite-.*|x-http-method.*|.*-override|x-host"
)


def parse_passed_header(text: object) -> str:
    """A name that a profile adds, such as x-tenant. ValueError for a credential, for framing, and for another method,
    path or host."""
    name = text.lower() if isinstance(text, str) else ""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "the name of a header has at most 60 letters, digits and hyphens, and begins with a letter, such as"
            " x-tenant"
        )
    if _NEVER.fullmatch(name):
        raise ValueError(
            f"{name} can change the identity, destination or form of a request; the guest may not send it together with"
            " a secret"
        )
    return name


def match_passed(more: tuple[str, ...]) -> str:
    """A regular expression (PCRE) that matches each name that is not forwarded."""
    return f"^(?!({'|'.join((*PASSED, *more))})$)"
