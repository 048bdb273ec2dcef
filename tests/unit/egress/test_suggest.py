import yaml

from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.report.suggest import render_suggestion


def row(host="", address="", port=443, rule="tls: name", count=1, during=""):
    return {"host": host, "address": address, "port": port, "rule": rule, "count": count, "during": during}


def test_the_smallest_fragment_is_a_valid_profile():
    text = render_suggestion(
        [
            row(host="a.example.com", rule="dns: name", port=53, count=2, during="unit: tests"),
            row(host="a.example.com", count=3),
            row(host="b.example.com", port=22, rule="drop: destination"),
            row(address="198.51.100.7", port=5432, rule="drop: destination"),
        ]
    )
    allow = yaml.safe_load(text)["egress"]["allow"]
    assert allow == [
        {"cidr": "198.51.100.7/32", "ports": [5432]},
        {"host": "a.example.com", "ports": [443]},
        {"host": "b.example.com", "ports": [22]},
    ]
    assert "# 5 times, during unit: tests" in text
    load_profile("version: 1\nname: p\nimage: i\n" + text, "p", lambda *_: ("", b""))


def test_what_no_profile_can_allow_is_said_and_left_out():
    text = render_suggestion(
        [
            row(address="169.254.169.254", port=80, rule="drop: destination", count=4),
            row(host="evil\nname: x", rule="tls: name"),
            row(rule="drop: spoofed", port=0),
            row(host="*.x", rule="dns: name"),
            row(host="allowed.example.com", rule="dns: type", port=0),
        ]
    )
    assert yaml.safe_load(text) is None
    assert "169.254.169.254:80" in text and "\nname: x" not in text


def test_a_request_that_a_rule_by_method_denied_does_not_open_its_host():
    text = render_suggestion([row(host="api.example.com", rule="broker: url:API_URL"), row(host="a.example.com")])
    assert yaml.safe_load(text)["egress"]["allow"] == [{"host": "a.example.com", "ports": [443]}]
    assert "# api.example.com:443 (broker: url:API_URL, 1 times) is limited by methods and paths" in text


def test_nothing_denied():
    assert render_suggestion([]) == "# no denied connection can be allowed by a profile\n"
