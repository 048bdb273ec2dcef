"""Masking of secrets in every text that is stored or shown: unchanged, base64 and URL-encoded."""

from __future__ import annotations

import base64
import functools
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

# A shorter value would mask ordinary words and thereby be revealed.
MIN_LENGTH = 4
MASK = "***"
T = TypeVar("T")
# A shorter value may occur in ordinary text.
SHORT = 8
# Maximal lines of one secret, such as a key, that are masked separately, and the shortest such line.
_MAX_LINES = 500
_LINE = 16
# Longer texts are masked as they are, because the expression for each character takes time.
_SPELLED = 4096
# Characters in a line of base64 as `base64` and `openssl` write it.
_WIDTHS = (76, 64)
# Keys whose values are fixed words, identifiers and times: never a secret, and required by readers.
KEPT = frozenset(
    "schema_version time instance_id run_id event kind verdict rule outcome state mode observed stage startability"
    " revision incarnation plan_digest image_digest digest sha256 commit base_commit started_at first_at last_at"
    " received_at at".split()
)


def make_mask(secrets: Iterable[bytes]) -> Callable[[str], str]:
    """A function that replaces every form of every secret. Without secrets it returns the text as it is."""
    texts: set[str] = set()
    encoded: set[str] = set()
    for secret in secrets:
        for value in {secret, secret.strip()}:
            text = value.decode("utf-8", "replace")
            if len(text) < MIN_LENGTH:
                continue
            # Lines of a longer secret, such as a key, are masked separately too.
            texts |= {text, *(line.strip() for line in text.splitlines()[:_MAX_LINES] if len(line.strip()) >= _LINE)}
            encoded |= {form for form in _base64_forms(value) if len(form) >= MIN_LENGTH}
    if not texts:
        return lambda text: text
    patterns = {text: "".join(map(_spell, text)) if len(text) <= _SPELLED else re.escape(text) for text in texts}
    patterns |= {form: re.escape(form) for form in encoded}
    # The class of first characters is checked before all of them.
    first = "".join(re.escape(form[0]) for form in patterns)
    pattern = re.compile(rf"(?=[%+\\{first}])(?:{'|'.join(_group(patterns))})")
    return lambda text: pattern.sub(MASK, text)


def _group(patterns: Mapping[str, str]) -> list[str]:
    """One alternative for each first character that has no other spelling, and one for each other form: of the hundreds
    of forms of a long secret, few are compared at each place. The longest comes first."""
    groups: dict[str, list[str]] = {}
    others: list[str] = []
    for form in sorted(patterns, key=len, reverse=True):
        if form[0].isascii() and form[0].isalnum():
            groups.setdefault(form[0], []).append(patterns[form][1:])
        else:
            others.append(patterns[form])
    return [*others, *(f"{character}(?:{'|'.join(rest)})" for character, rest in groups.items())]


@functools.lru_cache(4096)
def _spell(character: str) -> str:
    """An expression for one character as it stands in text, URLs, JSON and Python's literals.

    Programs differ in what they encode, and in the case of hexadecimal digits.
    """
    if character.isascii() and character.isalnum():
        return character
    code, wide = ord(character), character.encode("utf-16-be", "replace")
    units = struct.unpack(f">{len(wide) // 2}H", wide)
    hexadecimal = ["".join(f"%{byte:02x}" for byte in character.encode("utf-8", "replace"))]
    hexadecimal += ["".join(rf"\\u{unit:04x}" for unit in units), rf"\\U{code:08x}"]
    hexadecimal += [rf"\\x{code:02x}"] if code < 0x100 else []
    short = {
        "\n": r"\\n",
        "\r": r"\\r",
        "\t": r"\\t",
        " ": r"\+",
        "/": r"\\/",
        '"': r"\\\"",
        "\\": r"\\\\",
        "'": r"\\'",
    }
    spelled = [short[character]] if character in short else []
    return f"(?:{'|'.join([*spelled, re.escape(character), *(f'(?i:{one})' for one in hexadecimal)])})"


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
    # Without what the last character shares with a line break behind the secret.
    yield from _wrap(plain.rstrip("=")[: len(value) * 8 // 6])


def _wrap(encoded: str) -> Iterable[str]:
    """A longer text in lines, as programs write it: whole, in JSON, and line by line."""
    for width in _WIDTHS:
        lines = [encoded[at : at + width] for at in range(0, min(len(encoded), width * _MAX_LINES), width)]
        if len(lines) > 1:
            yield from (end.join(lines) for end in ("\n", "\r\n", "\\n", "\\r\\n"))
            yield from (line for line in lines if len(line) >= _LINE)
