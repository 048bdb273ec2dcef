"""Secrets taken out of every text that is kept or shown: as they are, base64 and URL-encoded."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus

# A shorter value would mask ordinary words and thereby show itself.
MIN_LENGTH = 4
MASK = "***"


def make_mask(secrets: Iterable[bytes]) -> Callable[[str], str]:
    """A function that replaces every form of every secret. Without secrets it returns the text as it is."""
    forms: set[str] = set()
    for secret in secrets:
        for value in {secret, secret.strip()}:
            text = value.decode("utf-8", "replace")
            if len(text) < MIN_LENGTH:
                continue
            forms |= {text, quote(text, safe=""), quote(text), quote_plus(text), text.encode("unicode_escape").decode()}
            # As they stand in our own documents.
            forms |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
            forms |= {
                html.escape(text, quote=False),
                html.escape(text),
                html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
            }
            # Lines of a longer secret, such as a key, are told apart too.
            forms |= {line.strip() for line in text.splitlines() if len(line.strip()) >= 16}
            forms |= set(_base64_forms(value))
    forms = {form for form in forms if len(form) >= MIN_LENGTH}
    if not forms:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
    return lambda text: pattern.sub(MASK, text)


def _base64_forms(value: bytes) -> Iterable[str]:
    """As it looks inside a longer base64 text, for each of the three positions that it may begin at, less the bits it shares."""
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * shift + value).decode().rstrip("=")
            begin = (shift * 8 + 5) // 6
            # The last character also carries bits of what follows.
            end = ((shift + len(value)) * 8) // 6
            if end - begin >= 6:
                yield encoded[begin:end]
    plain = base64.b64encode(value).decode()
    yield plain
    yield plain.rstrip("=")
