"""What cannot be branched is refused before anything is done, and an unfinished branch leaves nothing and a running
original."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.approvals.apply import approve
from ktrdr_vm.errors import GuestError, HostError, KtrdrError, UsageError
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Answer
from ktrdr_vm.guest.agent import wait_agent
from ktrdr_vm.host.journal import Journal, read_journal
from ktrdr_vm.host.libvirt_binding import DomainFacts, DomainState
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance import branch as module
from ktrdr_vm.instance.branch import HostInputs, branch
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.suspend import end_branching
from ktrdr_vm.plan.facts import HotplugReserve, TemplateFacts
from ktrdr_vm.policy.owner_policy import OwnerPolicy

# The fixture replaces it.
CREATE = module._create
COPY = parse_instance_id("copy")
GIVEN = HostInputs(lambda _: b"anew")


class Machine:
    """The libvirt of one running domain, with a log of what was done in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.state = DomainState.RUNNING
        self.xml = "<domain>memory-backend-file,mem-path=/t/memory</domain>"

    def find(self, name: str) -> DomainFacts:
        return DomainFacts(name, "one", "", "interactive", self.state, True)

    def describe(self, _name: str) -> str:
        return self.xml


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def origin(
    tmp_path: Path, machine: Machine, write_instance: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LoadedInstance]:
    """Writes and loads the instance that is to be branched; copying and creating are logged in place of being done."""
    home, log = Home(tmp_path), machine.log
    home.create()

    def copy_state(*_: Any, live: bool) -> float:
        log.append("copy memory" if live else "pause and copy memory")
        machine.state = DomainState.PAUSED
        return 0.25

    def continue_domain(*_: Any) -> None:
        if machine.state is DomainState.PAUSED:
            log.append("resume")
            machine.state = DomainState.RUNNING

    monkeypatch.setattr(module, "copy_state", copy_state)
    monkeypatch.setattr(module, "continue_domain", continue_domain)
    monkeypatch.setattr(module, "remove_secrets", lambda *_: log.append("take secrets") or ["secret:a"])  # type: ignore[func-returns-value]
    monkeypatch.setattr(module, "end_connection", lambda loaded: loaded.close())
    monkeypatch.setattr(module, "set_clock", lambda *_: log.append("set clock"))
    monkeypatch.setattr(module, "require_capacity", lambda *_, **__: None)
    monkeypatch.setattr(module, "find_qemu", lambda *_: [1])
    monkeypatch.setattr(module, "touch_memory", lambda _, memory: log.append(f"touch {Path(memory).name}"))
    monkeypatch.setattr(module, "wait_agent", lambda *_, **__: None)
    monkeypatch.setattr(module.process, "run", lambda *_, **__: log.append("copy disk"))
    monkeypatch.setattr(module, "_create", lambda _, copy, *__: log.append(f"create {copy.identity.instance_id}"))
    monkeypatch.setattr(LoadedInstance, "complete", lambda *_, **__: log.append("deliver"))
    monkeypatch.setattr(Instance, "destroy", lambda self, **_: log.append(f"destroy {self.identity.instance_id}"))

    def write(document: dict[str, Any] | None = None, **fields: Any) -> LoadedInstance:
        write_instance(home, "one", document, **{"template": "t", "kept": True, **fields})
        home.instance("one").overlay.touch()
        return Instance(home, parse_instance_id("one"), machine).load()  # type: ignore[arg-type]

    return write


@pytest.mark.parametrize(
    ("accelerator", "copied"), [("tcg", "pause and copy memory"), ("kvm", "copy memory")], ids=["tcg", "kvm"]
)
def test_the_original_is_as_before_and_its_secrets_are_taken_before_the_copy(
    origin: Callable[..., LoadedInstance], machine: Machine, accelerator: Any, copied: str
) -> None:
    loaded = origin()
    loaded.plan = replace(loaded.plan, facts=replace(loaded.plan.facts, accelerator=accelerator))
    made = branch(loaded, [COPY], GIVEN)
    assert machine.log == [
        "touch memory",
        "take secrets",
        copied,
        "copy disk",
        "resume",
        "set clock",
        "deliver",
        "create copy",
    ]
    assert made.instances == ("copy",) and made.paused >= 0.25
    journal = read_journal(loaded.paths.journal)
    assert journal is not None and journal.state == "awake" and not loaded.paths.branching.exists()


@pytest.mark.parametrize(
    ("document", "fields", "message"),
    [
        ({"mounts": [{"source": "./a", "target": "/a"}]}, {}, "its memory is shared"),
        ({}, {"template": ""}, "it was booted from its disk"),
        ({}, {"state": "suspending"}, "it does not run"),
    ],
)
def test_what_cannot_be_branched_is_not_touched(
    origin: Callable[..., LoadedInstance],
    machine: Machine,
    document: dict[str, Any],
    fields: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        branch(origin(document, **fields), [COPY], GIVEN)
    assert machine.log == []


@pytest.mark.parametrize(
    ("lending", "message"),
    [
        (HotplugReserve(mounts=True), "prepared for one"),
        (HotplugReserve(vcpus=4, memory=4096), "prepared for hot-plugged vCPUs"),
    ],
)
def test_one_that_is_prepared_for_loans_is_not_branched(
    origin: Callable[..., LoadedInstance], machine: Machine, lending: HotplugReserve, message: str
) -> None:
    loaded = origin()
    loaded.plan = replace(loaded.plan, facts=replace(loaded.plan.facts, lending=lending))
    with pytest.raises(UsageError, match=message):
        branch(loaded, [COPY], GIVEN)
    assert machine.log == []


def test_a_host_without_the_memory_or_the_disk_for_all_copies_is_left_alone(
    origin: Callable[..., LoadedInstance], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_root: Path, memory: int, *, guests: int, disk: int) -> None:
        # The memory once as a file; the disk once as the source of the copies, and once for each of them.
        assert guests == 3 and disk == memory + 4 * 100
        raise HostError("not enough", where="x", hint="y")

    monkeypatch.setattr(module, "require_capacity", refuse)
    loaded = origin()
    os.truncate(loaded.paths.overlay, 100 << 20)
    with pytest.raises(HostError, match="not enough"):
        branch(loaded, [COPY, parse_instance_id("second"), parse_instance_id("third")], GIVEN)
    assert machine.log == [] and not loaded.paths.branching.exists()


def test_a_copy_is_kept_once_it_is_complete_and_never_before(
    origin: Callable[..., LoadedInstance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gc` removes an unfinished copy of a sandbox."""
    origin_of_it = origin(mode="sandbox")
    copy = Instance(origin_of_it.home, COPY, origin_of_it.libvirt)
    monkeypatch.setattr(module, "copy_boot_files", lambda *_: None)
    monkeypatch.setattr(module.process, "run", lambda words, **_: Path(words[-1]).touch())
    monkeypatch.setattr(module, "sweep_secrets", lambda _: None)
    monkeypatch.setattr(module, "open_template", lambda *_: TemplateFacts("t", "/t"))
    monkeypatch.setattr("ktrdr_vm.instance.loaded.open_template", lambda *_: TemplateFacts("t", "/t"))
    monkeypatch.setattr(Instance, "_require_nothing_left", lambda _: None)
    monkeypatch.setattr("ktrdr_vm.instance.instance.find_free_slot", lambda _: 1)
    monkeypatch.setattr(LoadedInstance, "create", lambda *_, **__: None)
    monkeypatch.setattr(LoadedInstance, "connect", lambda *_, **__: None)
    seen: list[bool] = []
    monkeypatch.setattr(module, "personalize", lambda *_: seen.append(copy.is_kept()))
    monkeypatch.setattr(LoadedInstance, "complete", lambda *_, **__: seen.append(copy.is_kept()))
    CREATE(origin_of_it, copy, tmp_path, GIVEN, lambda *_: None)
    assert seen == [False, False] and copy.is_kept()
    assert copy.require_journal().mode == "sandbox"


def test_a_restarted_machine_is_not_branched(origin: Callable[..., LoadedInstance], machine: Machine) -> None:
    machine.xml = "<domain/>"
    with pytest.raises(UsageError, match="it was booted from its disk"):
        branch(origin(), [COPY], GIVEN)
    assert machine.log == []


def test_a_name_is_used_once(
    origin: Callable[..., LoadedInstance], machine: Machine, write_instance: Callable[..., Journal]
) -> None:
    loaded = origin()
    for names in ([COPY, COPY], [parse_instance_id("one")]):
        with pytest.raises(UsageError, match="a name of its own"):
            branch(loaded, names, GIVEN)
    write_instance(loaded.home, "copy")
    with pytest.raises(UsageError, match="there is an instance copy already"):
        branch(loaded, [COPY], GIVEN)
    assert machine.log == []


def test_what_approvals_had_delivered_is_given_back_when_the_original_runs(
    origin: Callable[..., LoadedInstance], machine: Machine
) -> None:
    loaded = origin()
    given = HostInputs(lambda _: b"anew", reapply=lambda: machine.log.append(f"reapply {loaded.journal.state}"))
    branch(loaded, [COPY], given)
    assert machine.log[-3:] == ["deliver", "reapply awake", "create copy"]


def test_if_the_copy_fails_the_original_runs_with_its_secrets(
    origin: Callable[..., LoadedInstance], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KtrdrError("no space", where="x", hint="y")

    monkeypatch.setattr(module.process, "run", fail)
    loaded = origin()
    with pytest.raises(KtrdrError, match="no space"):
        branch(loaded, [COPY], GIVEN)
    assert machine.log == ["touch memory", "take secrets", "pause and copy memory", "resume", "set clock", "deliver"]
    assert loaded.journal.state == "awake" and not loaded.paths.branching.exists()


def test_if_one_branch_fails_none_is_left(
    origin: Callable[..., LoadedInstance], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(_: LoadedInstance, copy: Instance, *__: Any) -> None:
        if copy.identity.instance_id == "second":
            raise GuestError("no answer", where="x", hint="y")

    monkeypatch.setattr(module, "_create", create)
    loaded = origin()
    with pytest.raises(GuestError):
        branch(loaded, [COPY, parse_instance_id("second"), parse_instance_id("third")], GIVEN)
    assert machine.log[-2:] == ["destroy copy", "destroy second"] and loaded.journal.state == "awake"
    assert not loaded.paths.branching.exists()


def test_secrets_that_stay_prevent_the_copy(
    origin: Callable[..., LoadedInstance], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise GuestError("it is still there", where="x", hint="y")

    monkeypatch.setattr(module, "remove_secrets", refuse)
    with pytest.raises(GuestError, match="still there"):
        branch(origin(), [COPY], GIVEN)
    assert not any("copy" in done for done in machine.log) and machine.log[-1] == "deliver"


def test_a_guest_whose_agent_does_not_answer_is_not_touched(
    origin: Callable[..., LoadedInstance], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.agent = lambda *_, **__: None  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "wait_agent", wait_agent)
    monkeypatch.setattr(module, "AGENT_LIMIT", 0.0)
    loaded = origin()
    with pytest.raises(GuestError, match="agent does not answer"):
        branch(loaded, [COPY], GIVEN)
    assert machine.log == [] and loaded.journal.state == "awake"


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
def test_what_a_killed_branch_left_is_ended_first(
    origin: Callable[..., LoadedInstance], machine: Machine, state: DomainState
) -> None:
    replies = iter(["active", "cancelling", "cancelled"])

    def monitor(_: str, execute: str, *arguments: Any) -> dict[str, str]:
        machine.log.append(execute)
        return {"status": next(replies)} if execute == "query-migrate" else {}

    machine.monitor, machine.state = monitor, state  # type: ignore[attr-defined]
    loaded = origin()
    loaded.paths.branching.mkdir()
    end_branching(loaded)
    assert machine.log == ["migrate_cancel", *["query-migrate"] * 3, "migrate-set-capabilities"]
    assert not loaded.paths.branching.exists()
    end_branching(loaded)
    assert len(machine.log) == 5


def submit(loaded: LoadedInstance, kind: str, request: dict[str, Any]) -> str:
    texts = dict.fromkeys(("blocked", "why", "recommendation", "decision", "evidence"), "x")
    packet = parse_packet({"kind": kind, "options": ["a"], "request": request, "seconds": 600, **texts})
    return loaded.escalations.submit(packet)[0].id


def test_an_original_is_not_branched_while_an_approval_delivers_a_secret(
    origin: Callable[..., LoadedInstance], machine: Machine
) -> None:
    loaded = origin()
    asked = submit(loaded, "secret", {"name": "token"})
    loaded.escalations.answer(
        asked, "approved", Answer(by="me", reason="r", at="t", request={"name": "token"}, seconds=60, waiting=True)
    )
    with pytest.raises(UsageError, match=f"an approval is delivering a secret: {asked}"):
        branch(loaded, [COPY], GIVEN)
    journal = read_journal(loaded.paths.journal)
    assert journal is not None and journal.state == "awake" and machine.log == ["touch memory"]
    assert not loaded.paths.branching.exists()


def test_nothing_is_delivered_to_an_instance_that_is_being_branched(origin: Callable[..., LoadedInstance]) -> None:
    loaded = origin()
    asked = submit(loaded, "network", {"host": "docs.example.com", "ports": [443]})
    # The approval has read the journal before; the branch begins now.
    other = Instance(loaded.home, loaded.identity, loaded.libvirt).load()
    other.journal.enter("suspending")
    with pytest.raises(UsageError, match="the instance is suspending"):
        approve(loaded, asked, OwnerPolicy(), reason="r")
    assert loaded.escalations.find(asked).current == "pending"
