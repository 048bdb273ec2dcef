"""`apt`, `pip`, `service` and `systemd` against guests that answer as theirs would."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ktrdr_vm.guest.protocol import GuestResult
from tests.fakes.guest import FakeGuest, Ran
from tests.unit.gates.conftest import Gate

NONE_CHANGED = b"0 upgraded, 0 newly installed, 0 to remove and 3 not upgraded.\n"


def answer(*rows: tuple[str, int, bytes]) -> Callable[[Ran], GuestResult | None]:
    """The result of the first row whose text is in the command; any other command succeeds without output."""
    return lambda ran: next(
        (GuestResult(code, out, out if code else b"") for text, code, out in rows if text in ran.line), None
    )


def run(gate: Gate, task: str, *rows: tuple[str, int, bytes]) -> tuple[str, str, list[str]]:
    gate.guest = FakeGuest(answer(*rows))
    result = gate.run(f"- {task}")
    return result.tasks[0].outcome, result.message, [ran.line for ran in gate.guest.ran]


def test_apt_installs_only_what_is_missing(gate: Gate) -> None:
    rows = (
        ("dpkg-query --show --showformat=${db:Status-Abbrev} ${Version}\\n -- git", 0, b"ii  1:2.39\n"),
        ("${Version}\\n -- curl", 1, b""),
        ("install", 0, b"1 newly installed\n"),
    )
    outcome, _, ran = run(gate, "apt: {name: [git, curl], install_recommends: false}", *rows)
    assert outcome == "changed"
    assert [line.split("install -- ")[1] for line in ran if "install -- " in line] == ["curl"]
    assert run(gate, "apt: {name: git}", *rows)[0] == "ok"
    assert run(gate, "apt: {name: 'git=1:2.*'}", *rows)[0] == "ok"


def test_apt_removes_updates_and_fails(gate: Gate) -> None:
    assert run(gate, "apt: {name: git, state: absent}", ("-- git", 1, b""))[0] == "ok"
    assert run(gate, "package: {name: git, state: latest}", ("install", 0, NONE_CHANGED))[0] == "ok"
    assert run(gate, "apt: {update_cache: true}")[0] == "changed"
    outcome, message, _ = run(
        gate, "apt: {name: nope}", ("dpkg-query", 1, b""), ("install", 100, b"E: Unable to locate package nope\n")
    )
    assert outcome == "failed" and "Unable to locate package nope" in message
    assert "there is no apt-get" in run(gate, "apt: {name: git}", ("command -v apt-get", 127, b""))[1]
    assert "is not the name of a package" in run(gate, "apt: {name: \"{{ '--force' }}\"}")[1]


def test_apt_honours_its_options_in_an_installation_and_in_an_upgrade(gate: Gate) -> None:
    """A question of dpkg has no answer, and a package that has become superfluous stays unless told."""
    for task, verb in (
        ("{name: curl, autoremove: true, only_upgrade: true, default_release: sid}", "install -- curl"),
        ("{upgrade: yes, autoremove: true, allow_downgrade: true, default_release: sid}", "upgrade --with-new-pkgs"),
        ("{upgrade: dist, autoremove: true, default_release: sid}", "dist-upgrade"),
    ):
        _, _, ran = run(gate, f"apt: {task}", ("dpkg-query", 1, b""))
        line = next(line for line in ran if line.endswith(verb))
        assert all(word in line for word in ("--force-confold", "--auto-remove", "-t sid"))
    assert run(gate, "apt: {upgrade: no}")[0] == "ok"


@pytest.mark.parametrize("time", ["²", "9" * 5000, "", "x"])
def test_a_time_that_is_no_number_updates_the_lists(gate: Gate, time: str) -> None:
    task = "apt: {update_cache: true, cache_valid_time: 3600}"
    assert run(gate, task, ("date +%s", 0, time.encode()))[0] == "changed"
    assert run(gate, task, ("stat -c %Y", 0, time.encode()), ("date +%s", 0, b"5000"))[0] == "changed"


def test_pip_in_a_new_virtual_environment(gate: Gate) -> None:
    lists = iter([b"", b"a==1\n"])

    def reply(ran: Ran) -> GuestResult | None:
        if ran.line.startswith("test -e") or "command -v virtualenv" in ran.line:
            return GuestResult(1, b"", b"")
        return GuestResult(0, next(lists), b"") if "list --format=freeze" in ran.line else None

    gate.guest = FakeGuest(reply)
    assert gate.run("- pip: {name: a, version: '1', virtualenv: /v}").tasks[0].outcome == "changed"
    lines = [ran.line for ran in gate.guest.ran]
    assert any(line.endswith("python3 -m venv /v") for line in lines) and any(
        line.endswith("/v/bin/pip install a==1") for line in lines
    )


@pytest.mark.parametrize(
    "options",
    [
        "{name: \"{{ '-e' }}\"}",
        '{name: "{{ omit }}"}',
        "{name: \"{{ ['a', 'b'] }}\", version: '1'}",
        "{name: a, virtualenv: \"{{ 'v' }}\"}",
    ],
)
def test_pip_says_what_is_wrong(gate: Gate, options: str) -> None:
    assert run(gate, f"pip: {options}")[0] == "failed"


SHOW = b"LoadState=loaded\nActiveState=%s\n"


@pytest.mark.parametrize(
    ("options", "active", "verb"),
    [
        ("state: started", b"inactive", "start"),
        ("state: started", b"active", ""),
        ("state: stopped", b"active", "stop"),
        ("state: stopped", b"failed", ""),
        ("state: restarted", b"active", "restart"),
        ("state: restarted", b"inactive", "start"),
        ("state: reloaded", b"active", "reload"),
    ],
)
def test_a_unit_gets_its_state(gate: Gate, options: str, active: bytes, verb: str) -> None:
    outcome, _, ran = run(gate, f"service: {{name: x, {options}}}", ("show", 0, SHOW % active))
    assert outcome == ("changed" if verb else "ok")
    assert (
        [line for line in ran if line.endswith(f"systemctl {verb} -- x")]
        if verb
        else not any("start" in line for line in ran)
    )


def test_enabling_masking_and_reloading(gate: Gate) -> None:
    rows = (("show", 0, SHOW % b"active"), ("is-enabled", 1, b"disabled\n"))
    _, _, ran = run(
        gate, "ansible.builtin.systemd_service: {name: x, enabled: true, masked: true, daemon_reload: true}", *rows
    )
    assert [line.split("systemctl ")[1] for line in ran if "show" not in line and "is-enabled" not in line] == [
        "daemon-reload",
        "mask -- x",
        "enable -- x",
    ]


def test_a_unit_that_is_not_there_and_one_that_does_not_start(gate: Gate) -> None:
    assert (
        "Could not find the requested service x"
        in run(gate, "service: {name: x, state: started}", ("show", 0, b"LoadState=not-found\n"))[1]
    )
    rows = (("show", 0, SHOW % b"inactive"), ("start", 1, b"Job for x.service failed.\n"))
    assert "Unable to start x: Job for x.service failed." in run(gate, "service: {name: x, state: started}", *rows)[1]
    assert "is not the name of one unit" in run(gate, "systemd: {name: \"{{ '--all' }}\", state: started}")[1]
    assert "there is no systemctl" in run(gate, "systemd: {name: x, state: started}", ("show", 127, b""))[1]
