import time

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.profile.strict_yaml import load_yaml


def refused(text):
    began = time.process_time()
    with pytest.raises(DocumentError) as caught:
        load_yaml(text, "p.yaml")
    assert time.process_time() - began < 1
    return caught.value.problems


def test_data_and_positions():
    document = load_yaml("a: 1\nb:\n  - x\n  - {c: yes}\n", "p.yaml")
    assert document.data == {"a": 1, "b": ["x", {"c": True}]}
    assert document.position(("b", 1, "c")) == (4, 9)
    assert document.key_position(("b", 1, "c")) == (4, 6)
    assert document.position(("b", 1, "missing")) == (4, 5)


def test_ports_and_dates_stay_text():
    assert load_yaml("[22:22, 2026-01-01, 1:30.5, 0x10, 1.5, ~]", "p").data == [
        "22:22",
        "2026-01-01",
        "1:30.5",
        16,
        1.5,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\na: 2\n", 2, "twice"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: !vault x\n", 1, "tag"),
        ("a: &x 1\nb: *x\n", 1, "anchor"),
        ("a:\n\t- 1\n", 2, "cannot start any token"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: [1, 2\n", 2, "expected"),
        ("? [1]\n: 2\n", 1, "key that is not text"),
        ("a: " + "9" * 6000, 1, "number"),
    ],
)
def test_refused_with_its_line(text, line, words):
    problems = refused(text)
    assert words in " ".join(problem.message for problem in problems)
    assert problems[0].line == line


def test_all_at_once():
    assert len(refused("a: !x 1\na: !y 2\nb: &q 1\n")) == 4


def test_bombs_and_garbage_cost_less_than_a_second():
    refused("a: " + "[" * 10_000)
    refused("{a: " * 10_000)
    refused(b"x" * 100_000_000)
    refused("a: b\0c\n")
    refused(b"\xff\xfe\x00")
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1},*a{n - 1}]\n" for n in range(1, 60))
    refused(laughs)
    refused("[" + "1," * 60_000 + "1]")
    refused("\ud800")
