"""The evidence of a failed task when the VM has many containers, of which some are not well."""

from __future__ import annotations

import json
import re

from ktrdr_vm.gates.container_logs import Failure, gather_containers
from ktrdr_vm.guest.protocol import GuestResult
from tests.fakes.guest import Answer, FakeGuest, Ran


def make_container(number: int, status: str = "running", code: int = 0) -> dict[str, object]:
    return {"Id": f"id{number}", "Name": f"/one-{number}", "State": {"Status": status, "ExitCode": code}}


def gather(containers: list[dict[str, object]], total: int) -> dict[str, str]:
    """Titles and texts. `docker logs` prints the id and the number of lines that it is asked for."""

    def answer(ran: Ran) -> Answer:
        if "docker inspect" in ran.line:
            # Those that are not well are listed first, since the list is cut.
            assert (
                ran.line.index("health=unhealthy") < ran.line.index("docker ps -aq; }") < ran.line.index("head -n 20")
            )
            return GuestResult(0, f"{total}\n{json.dumps(containers)}".encode(), b"")
        parts = re.findall(r"echo (\S+); timeout 15 docker logs --tail ([0-9]+) (\S+) ", ran.line)
        return GuestResult(0, "".join(f"{token}\n{lines} of {one}\n" for token, lines, one in parts).encode(), b"")

    texts, _ = gather_containers(FakeGuest(answer), Failure("", ""), environment={}, become=False)
    return dict(texts)


def test_the_logs_of_some_that_seem_well_are_there_beside_those_of_one_that_failed() -> None:
    """A sidecar that is not ready hid the API that answered 500."""
    texts = gather([make_container(1), make_container(2, "exited", 3)], 2)
    assert "50 of id2" in texts["container one-2"] and "20 of id1" in texts["container one-1"]


def test_it_says_how_many_are_not_shown() -> None:
    texts = gather([make_container(number) for number in range(20)], 26)
    assert texts["containers"].splitlines()[-1] == "and 6 more, which are not shown"
    assert len([title for title in texts if title.startswith("container ")]) == 5
    assert "more" not in gather([make_container(1)], 1)["containers"]


def test_a_count_that_is_no_number_is_left_out() -> None:
    assert "more" not in gather([make_container(1)], -5)["containers"]
