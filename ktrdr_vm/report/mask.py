"""Masking of secrets in every text that is stored or shown: unchanged, as documents, URLs and shells escape it, in
base64 and in hexadecimal."""

from __future__ import annotations

import base64
import functools
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from ktrdr_vm.errors import CUT

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
# Of so many bytes base64 is found with a line break at any place, and hexadecimal: an expression takes milliseconds for
# each hundred characters, before the first text is masked.
_BROKEN = 72
# In base64 and hexadecimal text: line breaks, also as JSON spells them, and what stands before each byte.
_BREAK = r"(?:\\+[nr]|[\r\n][ \t]*)*"
_BETWEEN = r"(?:[\s:,%]|\\+[nrx]|0x){0,6}"
# A text of this length may have been cut: fields of the ledger, messages and lines have limits from here on.
_LONG = 250
# Backslashes before a character that JSON, in up to three levels, or a shell escapes.
_ESCAPED = r"\\{0,7}"
# Further characters than letters and digits in a text that is found as documents escape it.
_SYMBOLS = 1024
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
    patterns: dict[str, str] = {}
    for secret in secrets:
        for value in {secret, secret.strip()}:
            text = value.decode("utf-8", "replace")
            if len(text) < MIN_LENGTH:
                continue
            # Lines of a longer secret, such as a key, are masked separately too.
            texts |= {text, *(line.strip() for line in text.splitlines()[:_MAX_LINES] if len(line.strip()) >= _LINE)}
            # Names of hosts are stored in lower case.
            texts |= {text.lower(), text.upper()} if SHORT <= len(text) <= _SPELLED else set()
            patterns |= {
                form: _spell_base64(form, len(value)) for form in _base64_forms(value) if len(form) >= MIN_LENGTH
            }
            patterns |= {form: _spell_hexadecimal(form) for form in _hexadecimal_forms(value)}
    if not texts:
        return lambda text: text
    patterns |= {text: _spell_text(text) if len(text) <= _SPELLED else re.escape(text) for text in texts}
    # The class of first characters is checked before all of them.
    first = "".join(re.escape(form[0]) for form in patterns)
    pattern = re.compile(rf"(?=[%+&\\\r{first}])(?:{'|'.join(_group(patterns))})")
    whole = sorted((text for text in texts if len(text) <= _SPELLED), key=len, reverse=True)
    return lambda text: _mask_ends(whole, _replace(pattern, text))


def _mask_ends(secrets: Sequence[str], text: str) -> str:
    """The text without half a secret where it was cut before it was masked: at the marks of an excerpt, and at both
    ends of a text that is long enough to have been cut without one."""
    whole = len(text) >= _LONG
    if CUT not in text:
        return _mask_halves(secrets, text, begins=whole, ends=whole)
    parts = text.split(CUT)
    last = len(parts) - 1
    return CUT.join(
        _mask_halves(secrets, part, begins=number > 0 or whole, ends=number < last or whole)
        for number, part in enumerate(parts)
    )


def _mask_halves(secrets: Sequence[str], text: str, *, begins: bool, ends: bool) -> str:
    """The text without the beginning of a secret at its end, and without the end of one at its beginning."""
    for secret in secrets:
        lengths = range(min(len(secret) - 1, len(text)), MIN_LENGTH - 1, -1)
        if ends and (cut := next((length for length in lengths if text.endswith(secret[:length])), 0)):
            text = text[:-cut] + MASK
        if begins and (cut := next((length for length in lengths if text.startswith(secret[-length:])), 0)):
            text = MASK + text[cut:]
    return text


def _replace(pattern: re.Pattern[str], text: str) -> str:
    """The text with a mark in place of each match. Where one begins within another, as when the end of a secret is the
    beginning of the next one, the mark stands for both."""
    kept: list[str] = []
    at = 0
    found = pattern.search(text)
    while found is not None:
        if found.start() >= at:
            kept += [text[at : found.start()], MASK]
        at = max(at, found.end())
        found = pattern.search(text, found.start() + 1)
    return "".join([*kept, text[at:]]) if kept else text


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


def _spell_text(text: str) -> str:
    """An expression for a text; one of bytes that are no text is compared as it is. A run of backslashes is one
    expression, because it has many readings character by character."""
    if "\ufffd" in text or sum(not character.isalnum() for character in text) > _SYMBOLS:
        return re.escape(text)
    return "".join(
        rf"\\{{{len(part)},{8 * len(part)}}}" if part[0] == "\\" else "".join(map(_spell, part))
        for part in re.findall(r"\\+|[^\\]+", text)
    )


@functools.lru_cache(4096)
def _spell(character: str) -> str:
    """An expression for one character, not a backslash, as it stands in text, URLs, JSON, XML, Python's literals and
    words of a shell.

    Programs differ in what they encode, and in the case of hexadecimal digits; a document can be a text of another one.
    """
    if character.isascii() and character.isalnum():
        return character
    code, wide = ord(character), character.encode("utf-16-be", "replace")
    units = struct.unpack(f">{len(wide) // 2}H", wide)
    encoded = character.encode("utf-8", "replace")
    hexadecimal = ["".join(f"%(?:25){{0,3}}{byte:02x}" for byte in encoded)]
    hexadecimal += ["".join(rf"\\+u{unit:04x}" for unit in units), rf"\\+U{code:08x}"]
    hexadecimal += [rf"\\+x{code:02x}"] if code < 0x100 else []
    hexadecimal += ["".join(rf"\\+x{byte:02x}" for byte in encoded)] if code >= 0x80 else []
    hexadecimal += [rf"&(?:amp;){{0,3}}#(?:0*{code}|x0*{code:x});"]
    short = {
        "\n": r"\r?\n[ \t]*|\\+r\\+n|\\+n",
        "\r": r"\\+r",
        "\t": r"\\+t",
        " ": r"\+",
        "'": r"&(?:amp;){0,3}apos;|'\\''|'\"'\"'",
        '"': "&(?:amp;){0,3}quot;",
        "&": "&(?:amp;){1,4}",
        "<": "&(?:amp;){0,3}lt;",
        ">": "&(?:amp;){0,3}gt;",
    }
    spelled = [short[character]] if character in short else []
    spelled += ["".join(rf"\\+{byte:03o}" for byte in encoded)] if code >= 0x80 else []
    plain = re.escape(character) if character.isspace() and character != " " else _ESCAPED + re.escape(character)
    return f"(?:{'|'.join([*spelled, plain, *(f'(?i:{one})' for one in hexadecimal)])})"


def _spell_base64(form: str, size: int) -> str:
    """An expression for base64 text of a value of `size` bytes, with line breaks at any place unless it is long."""
    if size > _BROKEN:
        return re.escape(form)
    return _BREAK.join(map(_spell, form)) if form.isprintable() and "\\" not in form else re.escape(form)


def _hexadecimal_forms(value: bytes) -> Iterable[str]:
    """In lower case, and with a capital first if that is a letter, because the first character is compared exactly."""
    digits = value[:_BROKEN].hex()
    return {digits, digits[0].upper() + digits[1:]}


def _spell_hexadecimal(form: str) -> str:
    """An expression for bytes as hexadecimal digits of either case, in one piece or with marks and breaks between."""
    digits = [form[0], *(one if one.isdigit() else f"[{one}{one.upper()}]" for one in form[1:])]
    return _BETWEEN.join("".join(digits[at : at + 2]) for at in range(0, len(digits), 2))


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
