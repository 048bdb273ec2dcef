"""A value keeps the text that its author wrote wherever text is meant; a number that would change is refused where a
type is kept."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.strict_yaml import load_yaml

HEAD = "version: 1\nname: t\nimage: debian-13-docker\n"
TEXTS = [
    "3.10",
    "01234",
    "022",
    "0x1F",
    "1_000",
    "1.5e+3",
    ".inf",
    "on",
    "yes",
    "NO",
    "true",
    "True",
    "22:30",
    "2026-01-01",
    "1e3",
    "-0",
    "+5",
    "1.0",
]
KEYS = ["ON", "NO", "Y", "on", "_1"]


def load(text: str) -> object:
    return load_profile(HEAD + text, "p.yaml", read=None).profile  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXTS)
def test_an_environment_has_the_author_s_characters(text: str) -> None:
    assert dict(load(f"environment: {{A: {text}}}\n").environment) == {"A": text}  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["~", "null", ""])
def test_nothing_is_no_value_of_a_variable(text: str) -> None:
    with pytest.raises(DocumentError, match="must not be null"):
        load(f"environment: {{A: {text}}}\n")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", ["environment", "vars"])
def test_a_key_is_the_author_s_text(where: str, key: str) -> None:
    assert [name for name, _ in getattr(load(f"{where}: {{{key}: a}}\n"), where)] == [key]


def test_keys_that_yaml_takes_for_one_value_are_two() -> None:
    assert load_yaml("{on: a, yes: b, 1.10: c, 1.1: d}", "x").data == {"on": "a", "yes": "b", "1.10": "c", "1.1": "d"}
    with pytest.raises(DocumentError, match="twice"):
        load_yaml("{on: a, on: b}", "x")


@pytest.mark.parametrize("text", ["3.10", "01234", "0x1F", "1_000", "1.5e+3", ".inf", "+5", "1.50"])
def test_a_variable_whose_number_would_change_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load(f"vars: {{a: {text}}}\n")
    [problem] = caught.value.problems
    assert problem.line == 4 and text in problem.message and "in quotes" in problem.message


@pytest.mark.parametrize(("text", "value"), [("0443", 291), ("0x1BB", 443), ("4_43", 443), ("+443", 443), ("0b11", 3)])
def test_a_whole_number_that_yaml_reads_otherwise_is_refused_at_its_place(text: str, value: int) -> None:
    with pytest.raises(DocumentError) as caught:
        load(f"egress: {{allow: [{{host: a.example, ports: [{text}]}}]}}\n")
    [problem] = caught.value.problems
    assert problem.line == 4 and f"the number {text} is {value} in YAML 1.1" in problem.message


@pytest.mark.parametrize(
    ("text", "value"),
    [("310", 310), ("3.1", 3.1), ("true", True), ("on", True), ("'3.10'", "3.10"), ("-5", -5), ("0", 0)],
)
def test_a_variable_that_stays_what_it_is_keeps_its_type(text: str, value: object) -> None:
    [(_, found)] = load(f"vars: {{a: {text}}}\n").vars  # type: ignore[attr-defined]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", [*TEXTS, ".1", "~", "[1.10]", "- .1", '"a"'])
def test_a_document_that_is_a_single_value_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(DocumentError, match=r"p\.yaml.* must be a mapping of keys and values|p\.yaml.* empty"):
        load_profile(f"{text}\n", "p.yaml", read=None)  # type: ignore[arg-type]
