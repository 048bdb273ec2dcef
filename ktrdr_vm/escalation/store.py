"""The escalations of an instance on the host: one file each, replaced atomically, with a state that only the host
changes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.escalation.packet import Packet, PacketError, parse_packet
from ktrdr_vm.host.beneath import Place, open_file
from ktrdr_vm.host.clock import boottime, now, read_boot_id
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.journal import locked

State = Literal["pending", "approved", "denied", "revoked", "expired"]
MAX_PENDING = 20
MAX_STORED = 200
_ID = re.compile(r"e[0-9]{1,4}")
# Bytes. A packet is smaller.
_MAX_FILE = 1 << 20


class FullError(Exception):
    """The limit of escalations is reached. The text is for the guest."""


@dataclass(frozen=True)
class Answer:
    """The decision. `request` and `seconds` may be narrower than requested; `ends` is the id of a boot and its second.

    `source` is the source of a secret (env or file). An approval of a suspended instance is `waiting` until the resume.
    """

    by: str
    reason: str
    at: str
    request: dict[str, Any] = field(default_factory=dict)
    seconds: int = 0
    ends: tuple[str, float] | None = None
    source: dict[str, str] = field(default_factory=dict)
    waiting: bool = False


@dataclass(frozen=True)
class Escalation:
    """One packet with its state."""

    id: str
    instance_id: str
    packet: Packet
    received_at: str
    state: State = "pending"
    answer: Answer | None = None

    @property
    def current(self) -> State:
        """The current state: an approval past its expiry is expired."""
        if self.state == "approved" and self.answer is not None and self.answer.ends is not None:
            boot, ends = self.answer.ends
            if boot != read_boot_id() or boottime() >= ends:
                return "expired"
        return self.state

    def to_json(self) -> dict[str, Any]:
        """As reports show it; `state` is the current one."""
        return {
            "id": self.id,
            "instance_id": self.instance_id,
            **self.packet.to_json(),
            "received_at": self.received_at,
            "state": self.current,
            "answer": asdict(self.answer) if self.answer else None,
            "observed": "host",
        }


class EscalationStore:
    """The escalations of one instance, in `directory`."""

    def __init__(self, directory: Path, instance_id: str) -> None:
        self.directory = directory
        self.instance_id = instance_id

    def list(self) -> list[Escalation]:
        """All of them, oldest first. Unreadable files are skipped, because this program did not write them."""
        found = []
        for path in self.directory.glob("e*.json") if self.directory.is_dir() else ():
            try:
                found.append(self._read(path))
            except (
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                OSError,
                OverflowError,
                RecursionError,
                KtrdrError,
            ):
                continue
        return sorted(found, key=lambda one: int(one.id[1:]))

    def find_unread(self) -> set[str]:
        """The names of the files that `list` skips."""
        return {path.stem for path in self.directory.glob("e*.json")} - {one.id for one in self.list()}

    def find(self, escalation_id: str) -> Escalation:
        """The escalation of that id; UsageError if there is none."""
        for one in self.list() if _ID.fullmatch(escalation_id) else ():
            if one.id == escalation_id:
                return one
        raise UsageError(
            f"there is no escalation {escalation_id!a} of {self.instance_id}",
            where=self.instance_id,
            hint=f"`ktrdr-vm escalations list {self.instance_id}` shows them",
        )

    def submit(self, packet: Packet) -> tuple[Escalation, bool]:
        """Store a packet; return the escalation and whether it is new. An equal packet returns the existing one.
        FullError at a limit."""
        with self._locked():
            known = self.list()
            for one in known:
                if one.packet.digest == packet.digest and one.current in ("pending", "approved"):
                    return one, False
            if sum(one.state == "pending" for one in known) >= MAX_PENDING:
                raise FullError(f"{MAX_PENDING} escalations are pending; wait until one is answered")
            if len(known) >= MAX_STORED:
                raise FullError(f"this instance has reached its limit of {MAX_STORED} escalations")
            made = Escalation(
                f"e{max((int(one.id[1:]) for one in known), default=0) + 1}", self.instance_id, packet, now()
            )
            self._write(made)
            return made, True

    def answer(self, escalation_id: str, state: State, answer: Answer) -> Escalation:
        """Record a decision. UsageError if the current state does not allow it."""
        with self._locked():
            found = self.find(escalation_id)
            allowed: Mapping[str, tuple[State, ...]] = {
                "pending": ("approved", "denied"),
                "approved": ("approved", "revoked"),
            }
            if state not in allowed.get(found.current, ()):
                raise UsageError(
                    f"{escalation_id} is {found.current} and cannot become {state}",
                    where=self.instance_id,
                    hint="a pending escalation can be approved or denied, an approved one revoked",
                )
            changed = replace(found, state=state, answer=answer)
            self._write(changed)
            return changed

    @contextmanager
    def approving(self, escalation_id: str, answer: Answer) -> Iterator[Callable[[tuple[str, float] | None], None]]:
        """Record an approval, then apply it in the block, which passes the expiry (id of a boot, second) to the yielded
        function.

        Until then the state is `waiting`, and no other answer is possible. If the block fails, the escalation is
        pending again.
        """
        self.answer(escalation_id, "approved", replace(answer, waiting=True))
        try:
            yield lambda ends: self._settle(escalation_id, replace(answer, ends=ends))
        except BaseException:
            self._release(escalation_id)
            raise

    def _settle(self, escalation_id: str, answer: Answer) -> None:
        with self._locked():
            self._write(replace(self.find(escalation_id), state="approved", answer=answer))

    def _release(self, escalation_id: str) -> None:
        with self._locked():
            found = self.find(escalation_id)
            if found.answer is not None and found.answer.waiting:
                self._write(replace(found, state="pending", answer=None))

    def _locked(self) -> Any:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        return locked(self.directory / "lock", f"the escalations of {self.instance_id}", wait=True)

    def _write(self, one: Escalation) -> None:
        content = {"schema_version": 1, **asdict(one), "packet": one.packet.to_json()}
        write_durably(self.directory / f"{one.id}.json", json.dumps(content, indent=2).encode())

    def _read(self, path: Path) -> Escalation:
        with os.fdopen(open_file(Place(self.directory), path.name), "rb") as file:
            content = json.loads(file.read(_MAX_FILE))
        try:
            packet = parse_packet(content["packet"])
        except PacketError as error:
            raise ValueError(str(error)) from None
        answer = _parse_answer(content["answer"])
        if (
            content["id"] != path.stem
            or not _ID.fullmatch(path.stem)
            or content["instance_id"] != self.instance_id
            or content["state"] not in get_args(State)
            or not isinstance(content["received_at"], str)
            or (answer is None) != (content["state"] == "pending")
        ):
            raise ValueError("this program writes no such escalation")
        return Escalation(path.stem, self.instance_id, packet, content["received_at"], content["state"], answer)


def _parse_answer(content: dict[str, Any] | None) -> Answer | None:
    """The answer that was stored. ValueError, KeyError or TypeError for anything else: its expiry decides whether what
    it approves is open."""
    if content is None:
        return None
    answer = Answer(**{**content, "ends": tuple(content["ends"]) if content["ends"] else None})
    texts = (answer.by, answer.reason, answer.at, *answer.source, *answer.source.values())
    if not all(isinstance(one, str) for one in texts) or not isinstance(answer.request, dict):
        raise ValueError("a text is none")
    if type(answer.seconds) is not int or type(answer.waiting) is not bool:
        raise ValueError("a number is none")
    if answer.ends is not None:
        boot, ends = answer.ends
        if not isinstance(boot, str) or type(ends) not in (int, float) or not math.isfinite(ends):
            raise ValueError("an expiry is none")
    return answer
