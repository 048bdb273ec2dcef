"""Secrets in what a workload prints, and in the documents that are made of it."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress.ledger import Ledger, read_kept
from ktrdr_vm.gates.loops import make_label
from ktrdr_vm.gates.model import Task
from ktrdr_vm.gates.results import find_message
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.report.mask import make_mask, mask_values
from ktrdr_vm.run.workload import KEPT_OUTPUT, run_workload

PACKAGE = PROJECT / "ktrdr_vm"
SECRET = b'p"a\\ss<w>&rd\xc3\xa9'


class Printing:
    """A guest whose workload prints these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def run(self, *_: object, on_output: Any = None, **__: object) -> GuestResult:
        for piece in self._pieces if on_output else ():
            on_output(piece)
        return GuestResult(0, b"0\n", b"")


def run(*pieces: bytes) -> tuple[bytes, str]:
    shown: list[bytes] = []
    result = run_workload(
        lambda: Printing(*pieces),  # type: ignore[arg-type,return-value]
        Workload(("x",)),
        environment={},
        chdir=None,
        mask=make_mask([b"hunter2hunter2"]),
        on_output=shown.append,
    )
    assert result is not None
    return b"".join(shown), result.stdout


def test_a_long_secret_costs_little_time() -> None:
    """A key of five hundred lines has some two thousand forms. Comparing each of them at each place took 8 s in this
    megabyte, and so a minute in a console of the largest size."""
    draw = random.Random(1)
    key = b"\n".join(base64.b64encode(draw.randbytes(48)) for _ in range(500))
    text = base64.b64encode(draw.randbytes(768 * 1024)).decode()
    mask = make_mask([key])
    began = time.process_time()
    assert mask(text) == text and mask(key.decode()) == "***"
    assert time.process_time() - began < 3


def test_what_is_shown_while_it_runs_is_masked_even_in_pieces() -> None:
    shown, kept = run(b"token hunter2", b"hunter2 end\nrest hunter2hun", b"ter2")
    assert shown == b"token *** end\nrest ***" and "hunter2" not in kept


def test_a_secret_at_the_cut_of_a_long_output_is_masked() -> None:
    assert "hunter2" not in run(b"hunter2hunter2" + b"x" * (KEPT_OUTPUT - 7))[1]


def test_a_secret_is_masked_as_programs_spell_it() -> None:
    mask, text = make_mask([SECRET]), SECRET.decode()
    for spelled in (json.dumps(text), json.dumps(text, ensure_ascii=False), text):
        assert "ss" not in mask(spelled), spelled


LONG = b"sk-ant/api03+" + bytes(range(48, 58)) * 12


@pytest.mark.parametrize("width", [76, 64])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\\n"])
def test_base64_in_lines_is_masked(width: int, end: str) -> None:
    """`base64` and `openssl` break their lines, so a longer secret never stands in one piece."""
    encoded = base64.b64encode(LONG + b"\n").decode()
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    mask = make_mask([LONG])
    # The last characters also contain bits of the line break.
    assert re.fullmatch(r"<\*\*\*[A-Za-z0-9=]{1,4}>", mask(f"<{end.join(lines)}>"))
    assert mask(json.dumps(lines)).startswith('["***", "***"')


@pytest.mark.parametrize(
    "spelled",
    [
        "pa%2fss%21 w%26ord%27",
        "pa%2Fss! w%26ord'",
        "pa/ss!+w&ord'",
        "pa\\/ss! w&ord'",
        "pa/ss! w\\u0026ord\\u0027",
        "pa/ss! w\\u0026ord\\'",
        "pa%2Fss!%20w%26ord%27",
    ],
)
def test_other_spellings_of_urls_and_json_are_masked(spelled: str) -> None:
    """Clients differ in what they encode and in the case of digits; encoders of JSON escape more than they must."""
    assert make_mask([b"pa/ss! w&ord'"])(f"a {spelled} b") == "a *** b"


@pytest.mark.parametrize(
    ("secret", "spelled"),
    [
        ("pa<ss>&w\"o'rd", "pa&lt;ss&gt;&amp;w&quot;o&#x27;rd"),
        ("pa'ssword", "pa&apos;ssword"),
        ("päss&word", "p&#228;ss&#38;word"),
        ('pa"ss\\wo/rd', json.dumps(json.dumps('pa"ss\\wo/rd'))[3:-3]),
        ("pa'ss word", "pa'\"'\"'ss word"),
        ("pa'ss word", "pa'\\''ss word"),
        ("pa ss&word", "pa\\ ss\\&word"),
        ("pä word", "p\\303\\244 word"),
        ("pä word", "p\\xc3\\xa4 word"),
        ("pa/ss&word", "pa%252Fss%2526word"),
        ("first11\nsecond2", "first11\r\nsecond2"),
        ("first11\nsecond2", "first11\n    second2"),
        ("HunterSecret", "huntersecret"),
        ("hunter2Zq-9", b"hunter2Zq-9".hex()),
        ("hunter2Zq-9", b"hunter2Zq-9".hex().upper()),
        ("hunter2Zq-9", b"hunter2Zq-9".hex(" ")),
        ("jklm\xff", "6A:6B:6C:6D:C3:BF"),
    ],
)
def test_spellings_of_documents_and_shells_are_masked(secret: str, spelled: str) -> None:
    assert make_mask([secret.encode()])(f"<{spelled}>") == "<***>"


@pytest.mark.parametrize("before", range(60))
def test_base64_and_hexadecimal_of_a_file_around_it_are_masked_at_any_line_break(before: int) -> None:
    """The lines of a file's base64 break where the file says, not where the secret begins."""
    mask, content = make_mask([b"hunter2-Zq9xLm"]), b"x" * before + b"hunter2-Zq9xLm" + b"y" * 60
    shown = mask(base64.encodebytes(content).decode())
    assert shown.count("***") == 1 and len(shown) < len(base64.encodebytes(content)) - 10
    digits = content.hex()
    lines = "\n".join(digits[at : at + 60] for at in range(0, len(digits), 60))
    assert "".join(mask(lines).split()) == "78" * before + "***" + "79" * 60


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        ((b"abcdefgh", b"efghijkl"), "abcdefghijkl"),
        ((b"efghijkl", b"abcdefgh", b"ijklmnop"), "abcdefghijklmnop"),
        ((b"hunter2", b"hunter2secret"), "hunter2secret"),
        ((b"abcdefghijkl", b"efgh"), "abcdefghijkl"),
    ],
)
def test_secrets_that_overlap_leave_no_half_of_one(secrets: tuple[bytes, ...], text: str) -> None:
    assert make_mask(secrets)(f"{text} {text}") == "*** ***"


def test_a_secret_of_backslashes_is_searched_in_linear_time() -> None:
    """Character by character, a run of backslashes has as many readings as it has ways to pair them."""
    began = time.process_time()
    mask = make_mask([b"\\" * 40 + b"end'\\'\\'\\'"])
    text = ("\\" * 60 + "x") * 200
    assert mask(text) == text and mask(json.dumps("\\" * 40 + "end'\\'\\'\\'")) == '"***"'
    assert time.process_time() - began < 30


@pytest.mark.parametrize("kept", range(4, 14))
def test_a_text_that_was_cut_within_a_secret_has_no_half_of_it(tmp_path: Path, kept: int) -> None:
    """The ledger cuts a path of the guest, and JUnit files and last lines are cut, before anything is masked; the end
    of a console begins anywhere."""
    mask = make_mask([b"hunter2hunter2", b"another-one"])
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    ledger.write("broker", "deny", path="/" * (400 - kept) + "hunter2hunter2")
    ledger.close()
    [row] = read_kept(tmp_path / "egress.jsonl")
    assert mask_values(row, mask)["path"] == "/" * (400 - kept) + "***"
    assert mask("hunter2hunter2"[-kept:] + "." * 300) == "***" + "." * 300
    assert mask("push to hunter2") == "push to hunter2", "a text that no limit can have cut stays"


def test_what_a_guest_says_is_cut_with_a_mark_wherever_a_message_has_it() -> None:
    """A slice of a text in a message leaves half a secret that no mask finds."""
    slices = re.compile(r"(strip\(\)|'replace'\)|\"replace\"\)|join\([^)]*\)|error\.message)\[-?:?-?\d{3,}:?\]")
    places = [
        path for room in ("gates", "guest", "instance", "run", "templates") for path in (PACKAGE / room).rglob("*.py")
    ]
    assert len(places) > 80
    assert [str(path) for path in places if slices.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("kept", [4, 5, 13])
def test_a_message_with_an_excerpt_in_its_middle_has_no_half_of_a_secret(kept: int) -> None:
    """The last line of a program and the label of an item are cut, and more words follow them, before anything is
    masked."""
    secret = "hunter2hunter2"
    mask = make_mask([secret.encode()])
    result = {"failed": True, "msg": "non-zero return code", "rc": 1, "until_failed": "it works"}
    for stderr in ("x" * (300 - kept) + secret + "y" * 30, f"{secret}{'.' * (4000 - kept)}"):
        shown = mask(find_message("command", result | {"stderr": stderr}) + "; and more")
        assert "***" in shown and secret[:kept] not in shown and secret[-kept:] not in shown
    task = Task("x", "command", {}, "p.yaml:1", loop="{{ items }}")
    templar: Any = None  # without a `label` nothing is rendered
    label, _ = make_label(task, "x" * (200 - kept) + secret, templar, templar)
    assert mask(f"{label}: failed").endswith("x***…: failed")
    assert mask("hunter2… and …hunter2") == "***… and …***", "marks of others are treated alike"
    assert mask("to hunter2 and on") == "to hunter2 and on"


@pytest.mark.parametrize(
    "secrets",
    [
        [random.Random(1).randbytes(65536)],
        [f"ghp_{number:05}-".encode() * 4 for number in range(20)],
        [b"%05d" % number * 40 for number in range(10)],
    ],
)
def test_a_mask_is_made_in_little_time(secrets: list[bytes]) -> None:
    """It is made again for each secret that is approved, which waits for it."""
    began = time.process_time()
    mask = make_mask(secrets)
    assert mask(secrets[0].decode("utf-8", "replace")) == "***"
    assert time.process_time() - began < 30
