"""The headers that the page on brokers lists are those that the proxy forwards, and no others."""

from __future__ import annotations

import re

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.profile.request_headers import PASSED, match_passed

TEXT = (PROJECT / "docs/broker.md").read_text(encoding="utf-8")
LISTED = {
    name.lower()
    for line in TEXT.partition("### Which headers pass")[2].split("\n\n")[1].splitlines()[2:]
    for name in re.findall(r"`([^`]+)`", line)
}


def find_names() -> set[str]:
    """The patterns of the program as the page writes them."""
    names = set()
    for pattern in PASSED:
        start, _, choices = pattern.partition("(")
        names |= {start + choice for choice in choices.rstrip(")").split("|")} if choices else {pattern}
    return {re.sub(r"\[[^]]+\]\+", "*", name) for name in names}


def test_the_page_lists_each_header_that_passes_and_no_other() -> None:
    assert find_names() == LISTED and len(LISTED) > 30


def test_a_star_is_what_the_page_says() -> None:
    removed = re.compile(match_passed(("x-tenant",)))
    for name in LISTED:
        assert not removed.search(name.replace("*", "word")), name
        assert bool(removed.search(name.replace("*", "two-words"))) == (
            "*" in name and name not in ("if-*", "anthropic-*", "x-stainless-*")
        ), name
        assert bool(removed.search(name.replace("*", "md5"))) == (
            "*" in name and name not in ("content-*", "x-stainless-*")
        ), name
        assert removed.search(name.replace("*", "a_b") + "_"), name
    assert not removed.search("x-tenant") and removed.search("x-tenants") and removed.search("xx-tenant")
