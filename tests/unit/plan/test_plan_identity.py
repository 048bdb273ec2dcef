"""The instance_id and the names that derive from it. Row 37: one documented rule accepts or refuses, and nothing is
repaired."""

from __future__ import annotations

import re
import unicodedata
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.errors import UsageError
from ktrdr_vm.identity import derive_instance_id, make_home_token, parse_instance_id

GOOD = ["a", "0", "a-b", "ktrdr--feat-operation-metrics", "x" * 63, "1--2"]
BAD = [
    "", "-", "-a", "a-", "--", "A", "Abc", "a b", " a", "a ", "a\n", "\na", "a\0", "../x", "a/b", "a\\b", ".", "..", "a.b", "a_b", "a:b",
    "x" * 64, "x" * 300, "é", "\u0430bc", "\uff41", "a\u200b", "a\u202eb", "a\N{KELVIN SIGN}", "\u0131", "ß", "a;rm -rf /", "$(id)", "`id`", "{{ 7*7 }}",
    "%s", "a'b", 'a"b', "<a>", "a&b", "-rf", "--help",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_accepted(text: str) -> None:
    assert parse_instance_id(text).instance_id == text


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_refused_with_the_rule_and_without_the_bytes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_instance_id(text)
    assert "1 to 63 characters" in caught.value.hint
    assert caught.value.message.isascii() and caught.value.message.isprintable() and len(caught.value.message) < 120


@given(st.text(max_size=80))
def test_what_is_accepted_is_a_label_in_every_place(text: str) -> None:
    try:
        identity = parse_instance_id(text)
    except UsageError:
        return
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", text) and len(text) <= 63
    assert unicodedata.normalize("NFKC", text) == text
    assert len(identity.tap) <= 15 and re.fullmatch(r"kv[0-9a-f]{10}", identity.tap)
    assert re.fullmatch(r"ktrdr_[0-9a-f]{10}", identity.table)
    assert str(uuid.UUID(identity.uuid)) == identity.uuid


# Few letters, so that names which fold alike are met.
_NAMES = st.text(alphabet="aA-_/.", min_size=1, max_size=6)


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_a_branch_is_called_it_becomes_an_instance_id(repository: str, branch: str) -> None:
    identity = derive_instance_id(repository, branch)
    assert parse_instance_id(identity.instance_id) == identity
    assert derive_instance_id(repository, branch) == identity


def test_the_plain_case_reads_well() -> None:
    assert derive_instance_id("ktrdr", "feat/operation-metrics").instance_id == "ktrdr--feat-operation-metrics"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("feat/a", "feat-a!"),
        ("x" * 100, "x" * 101),
        ("é", "ü"),
        ("a b", "a-b"),
        ("a.b", "a-b"),
        ("a--b", "a---b"),
        ("A+b", "a-b"),
        ("", "detached"),
    ],
)
def test_two_branches_are_two_instances(one: str, other: str) -> None:
    assert derive_instance_id("r", one) != derive_instance_id("r", other)


def test_names_that_would_read_alike_are_different_instances() -> None:
    branches = [
        "feat/x",
        "feat-x",
        "feat_x",
        "Feat/X",
        "feat.x",
        "feat//x",
        "FEAT/x",
        "feat/x/",
        "fe/at-x",
        "feat x",
        "f/e/a/t/x",
    ]
    repositories = ["app", "App", "a-pp", "a_pp", "app-", "app.git"]
    derived = {derive_instance_id(repository, branch).instance_id for repository in repositories for branch in branches}
    assert len(derived) == len(branches) * len(repositories)


@given(st.tuples(_NAMES, _NAMES), st.tuples(_NAMES, _NAMES))
def test_two_names_are_two_instances(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (derive_instance_id(*one) == derive_instance_id(*other)) == (one == other)


@pytest.mark.parametrize(
    ("branch", "plain"), [("main", "r--main"), ("feat/x-y", "r--feat-x-y"), ("v1", "r--v1"), ("fix/42", "r--fix-42")]
)
def test_common_names_are_plain(branch: str, plain: str) -> None:
    assert derive_instance_id("r", branch).instance_id == plain


@pytest.mark.parametrize(("repository", "plain"), [("app", ["fix/login-it"]), ("App", []), ("a_pp", [])])
def test_one_branch_at_most_is_plain_and_each_other_ends_with_a_digest(repository: str, plain: list[str]) -> None:
    branches = ["fix/login-it", "fix-login-it", "fix-login/it", "fix/login/it", "Fix/login-it", "fix_login-it"]
    found = {branch: derive_instance_id(repository, branch).instance_id for branch in branches}
    marked = [branch for branch in branches if re.fullmatch(r"a-?pp--fix-login-it-[0-9a-f]{6}", found[branch])]
    assert [branch for branch in branches if branch not in marked] == plain
    assert all(found[branch] == "app--fix-login-it" for branch in plain)


def test_names_differ_between_instances_and_marks_between_homes() -> None:
    identities = [parse_instance_id(f"i{number}") for number in range(2000)]
    for derived in ("token", "tap", "table", "domain", "uuid", "ref_prefix"):
        assert len({getattr(identity, derived) for identity in identities}) == 2000
    assert make_home_token("/a") != make_home_token("/b")
    assert identities[0].mark("/a") != identities[0].mark("/b")
    assert "instance_id=i0 " in identities[0].mark("/a")
