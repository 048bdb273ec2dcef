"""What packets and the guard put into sets is no change of the rules, in the JSON that nft 1.0.6 really prints."""

import pytest

from ktrdr_vm.host.nft import keep_rules


def listing(**more):
    return [
        {
            "set": {
                "family": "inet",
                "name": "s",
                "table": "t",
                "type": ["ipv4_addr", "inet_proto", "inet_service"],
                "handle": 3,
                **more,
            }
        }
    ]


ELEMENT = {"elem": [{"elem": {"val": {"concat": ["203.0.113.9", "tcp", 22]}, "counter": {"packets": 1, "bytes": 60}}}]}


@pytest.mark.parametrize(
    "kind", [{"stmt": [{"counter": None}], "size": 4096}, {"flags": ["timeout"]}, {"flags": ["dynamic"]}]
)
def test_an_element_that_came_by_itself_is_no_difference(kind):
    assert keep_rules(listing(**kind, **ELEMENT)) == keep_rules(listing(**kind))


@pytest.mark.parametrize("kind", [{}, {"flags": ["interval"]}])
def test_an_element_of_a_fixed_set_is_one(kind):
    assert keep_rules(listing(**kind, **ELEMENT)) != keep_rules(listing(**kind))
