"""Somebody lives in it: three days of one instance in a minute or two of lab time, with the commands that a person
types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run
from laboratory.daemons import restart_daemons
from laboratory.lab import Lab

pytestmark = pytest.mark.usefixtures("image")

PROFILE = """\
version: 1
name: lived-in
mode: interactive
image: debian-13-docker
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
egress: {{allow: [{{host: {host}, ports: [80]}}]}}
secrets: [{{name: token, source: {{env: KTRDR_LAB_CANARY}}}}]
"""
SECRET = {"KTRDR_LAB_CANARY": "CANARY-three-days"}


class Person:
    """Who types. Every command must do what it says, or the day is over."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab, self.place = lab, place

    def types(self, *words: str, code: int = 0) -> str:
        ended = run(self.lab, *words, cwd=self.place, environment=SECRET, limit=1200)
        assert ended.code == code, f"{words}: {ended.code}\n{ended.stdout[-1000:]}{ended.stderr[-2000:]}"
        return ended.stdout + ended.stderr

    def sees(self, instance_id: str, line: str) -> str:
        return self.types("exec", instance_id, "--", "sudo", "sh", "-c", line).strip()

    def state(self, instance_id: str) -> str:
        return next(
            (row["state"] for row in json.loads(self.types("list", "--json")) if row["instance_id"] == instance_id),
            "gone",
        )

    def writes(self, host: str) -> None:
        (self.place / "profile.yaml").write_text(PROFILE.format(host=host))


def test_three_days(lab: Lab, tmp_path: Path) -> None:
    person, home, branch = Person(lab, tmp_path), lab.new_id("home"), lab.new_id("branch")
    try:
        # The first day: made, worked in, closed.
        person.writes("allowed.test.lab")
        person.types("apply", "profile.yaml", "--instance-id", home)
        person.sees(home, "echo day one > /root/diary; docker volume create work >/dev/null")
        person.sees(
            home,
            "systemd-run --quiet --unit=counter sh -c 'n=0; while :; do n=$((n+1)); echo $n > /run/count; sleep 0.2; done'",
        )
        assert person.sees(home, "cat /run/secrets/token") == SECRET["KTRDR_LAB_CANARY"]
        person.types("suspend", home)
        assert person.state(home) == "suspended"
        # At night the host is restarted: nothing of libvirt's memory, no tap, no rule.
        restart_daemons(lab.scratch)
        assert person.state(home) == "suspended"
        assert "resume" in person.types("exec", home, "--", "true", code=2)

        # The second day: it goes on where it stood, and its profile changes.
        person.types("resume", home)
        assert person.state(home) == "running"
        before = int(person.sees(home, "cat /run/count; sleep 1"))
        assert int(person.sees(home, "cat /run/count")) > before, "what ran goes on"
        assert person.sees(home, "cat /root/diary; cat /run/secrets/token") == f"day one\n{SECRET['KTRDR_LAB_CANARY']}"
        person.writes("other.test.lab")
        assert '+    "other.test.lab:80"' in person.types("plan", "profile.yaml", "--instance-id", home)
        assert "changes (live) egress" in person.types("apply", "profile.yaml", "--instance-id", home)
        reach = "curl -s -o /dev/null -w '%{http_code} ' -m 20 http://other.test.lab/; curl -s -o /dev/null -m 20 http://allowed.test.lab/ || echo closed"
        assert person.sees(home, reach) == "200 closed"
        assert "ok" in person.types("apply", "profile.yaml", "--instance-id", home), "twice is once"

        # The third day: a branch of it, to try something that may go wrong.
        person.sees(home, "echo day three >> /root/diary")
        person.types("snapshot", home, "before")
        person.types("apply", "profile.yaml", "--instance-id", branch, "--from", f"{home}@before")
        assert (
            person.sees(branch, "cat /root/diary; hostname; docker volume ls -q")
            == f"day one\nday three\n{branch}\nwork"
        )
        person.sees(branch, "rm /root/diary")
        assert person.sees(home, "cat /root/diary; hostname") == f"day one\nday three\n{home}", (
            "a branch takes nothing away"
        )
        assert "--yes" in person.types("destroy", home, code=2), "it asks, and nobody is there to answer"
        assert person.state(home) == "running"
    finally:
        for one in (branch, home):
            if person.state(one) != "gone":
                person.types("destroy", "--yes", one)
    for one in (branch, home):
        assert_nothing_left(lab, one)
