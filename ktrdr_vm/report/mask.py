"""Masking of secrets in every text that is stored or shown: unchanged, base64 and URL-encoded."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast
from urllib.parse import quote, quote_plus

# A shorter value would mask ordinary words and thereby be revealed.
MIN_LENGTH = 4
MASK = "***"
T = TypeVar("T")
# A shorter value may occur in ordinary text.
SHORT = 8
# Maximal lines of one secret, such as a key, that are masked separately.
_MAX_LINES = 500
# Keys whose values are fixed words, identifiers and times: never a secret, and required by readers.
KEPT = frozenset(
    "schema_version time instance_id run_id event kind verdict rule outcome state mode observed stage startability"
    " plan_digest image_digest digest sha256 commit base_commit started_at first_at last_at received_at at".split()
)


def make_mask(secrets: Iterable[bytes]) -> Callable[[str], str]:
    """A function that replaces every form of every secret. Without secrets it returns the text as it is."""
    forms: set[str] = set()
    for secret in secrets:
        for value in {secret, secret.strip()}:
            text = value.decode("utf-8", "replace")
            if len(text) < MIN_LENGTH:
                continue
            forms |= {text, quote(text, safe=""), quote(text), quote_plus(text), text.encode("unicode_escape").decode()}
            # The form in JSON output of programs.
            forms |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
            # Lines of a longer secret, such as a key, are masked separately too.
            forms |= {line.strip() for line in text.splitlines()[:_MAX_LINES] if len(line.strip()) >= 16}
            forms |= set(_base64_forms(value))
    forms = {form for form in forms if len(form) >= MIN_LENGTH}
    if not forms:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
    return lambda text: pattern.sub(MASK, text)


def mask_values(value: T, mask: Callable[[str], str]) -> T:
    """The same value, of the same types, with every text in it masked, except keys and the values of keys in KEPT.

    Applied before a document is rendered, so that the document is valid whatever a secret contains.
    """
    return cast(T, _mask_any(value, mask))


def _mask_any(value: Any, mask: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {name: one if name in KEPT else _mask_any(one, mask) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mask_any(one, mask) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value,
            **{one.name: _mask_any(getattr(value, one.name), mask) for one in fields(value) if one.name not in KEPT},
        )
    return value


def find_short(secrets: Mapping[str, bytes]) -> list[str]:
    """Names of secrets with short values, whose masking may hide other text; below MIN_LENGTH they are not masked."""
    return [name for name, value in secrets.items() if len(value.strip()) < SHORT]


def _base64_forms(value: bytes) -> Iterable[str]:
    """Its forms in a longer base64 text, for each of the three alignments, without characters with shared bits."""
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * shift + value).decode().rstrip("=")
            begin = (shift * 8 + 5) // 6
            # The last character also contains bits of the following text.
            end = ((shift + len(value)) * 8) // 6
            if end - begin >= 6:
                yield encoded[begin:end]
    plain = base64.b64encode(value).decode()
    yield plain
    yield plain.rstrip("=")
