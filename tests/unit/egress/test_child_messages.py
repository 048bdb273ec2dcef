"""Messages between the guard and its children: what is written is read back, and an unknown or missing field is
refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ktrdr_vm.egress.resolver.messages import (
    AllowReply,
    AllowRequest,
    Count,
    Grants,
    Note,
    parse_guard_message,
    parse_resolver_message,
)
from ktrdr_vm.escalation.inbox_protocol import ListRequest, SubmitRequest, parse_request

SAID: list[Note | Count | AllowRequest] = [
    Note("dns", "deny", {"name": "a.example", "rule": "name", "type": "A"}),
    Count("rate", 3),
    AllowRequest(7, "a.example", ("198.51.100.1", "198.51.100.2"), 60),
]
TOLD: list[AllowReply | Grants] = [
    AllowReply(7, ("198.51.100.1",)),
    AllowReply(8, ()),
    Grants([["e1", {"names": []}]]),
    Grants([]),
]
ASKED: list[ListRequest | SubmitRequest] = [ListRequest(), ListRequest("e1"), SubmitRequest({"kind": "network"}, 4)]
ALL: list[tuple[Any, Any]] = [(parse_resolver_message, one) for one in SAID] + [
    (parse_guard_message, one) for one in TOLD
]
ALL += [(parse_request, one) for one in ASKED]


def encode(content: object) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(("parse", "message"), ALL, ids=lambda one: type(one).__name__)
def test_what_is_written_is_read_back_and_nothing_else(parse: Any, message: Any) -> None:
    content = message.to_json()
    assert parse(encode(content)) == message
    with pytest.raises(ValueError):
        parse(encode({**content, "more": 1}))
    for name in content:
        with pytest.raises(ValueError):
            parse(encode({key: value for key, value in content.items() if key != name}))
    for wrong in (None, 1.5, {"a": 1}, "x", [1]):
        for name in content:
            if (name, wrong) not in (("id", "x"), ("packet", {"a": 1})):
                with pytest.raises((ValueError, TypeError)):
                    parse(encode({**content, name: wrong}))


@pytest.mark.parametrize("wrong", [None, 5, "x", [], {}, {"serves": False}])
def test_what_is_no_message_is_refused(wrong: object) -> None:
    for parse in (parse_resolver_message, parse_request):
        with pytest.raises(ValueError):
            parse(encode(wrong))


@pytest.mark.parametrize(
    "content",
    [
        {"note": ["dns", "deny"]}, {"note": ["dns", "deny", {}, 1]}, {"count": ["rate"]}, {"count": ["rate", True]}, {"count": ["rate", 0]},
        {"allow": ["a.example", ["198.51.100.1"]], "number": 1}, {"allow": ["a.example", [5], 60], "number": 1},
        {"allow": ["a.example", "198.51.100.1", 60], "number": 1}, {"allow": ["a.example", [], -1], "number": 1},
        {"allow": ["a.example", [], 60], "number": "1"}, {"note": ["dns", "deny", {}], "count": ["rate", 1]},
    ],
)  # fmt: skip
def test_entries_of_a_list_are_fields_as_well(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse_resolver_message(encode(content))
