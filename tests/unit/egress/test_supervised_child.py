"""A child of the guard is started again more and more slowly, never given up, and its own words say why it does not
serve."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress.supervised_child import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    SERVES,
    STEADY,
    ChannelChild,
    StandardError,
    SupervisedChild,
)
from ktrdr_vm.errors import HostError


class Stage:
    """Processes that are pipes: `say` writes to standard error of the one that lives, `die` ends it."""

    def __init__(self) -> None:
        self.now, self.starts, self.served = 1000.0, 0, False
        self.notes: list[str] = []
        self.received = 0
        self.refusal: Exception | None = None
        self.selector = selectors.DefaultSelector()
        self.part = SupervisedChild(
            "the part",
            self._start,
            self._receive,
            lambda: self.served,
            self.selector,
            self.notes.append,
            lambda: self.now,
        )

    def _start(self) -> tuple[subprocess.Popen[bytes], Any]:
        if self.refusal:
            raise self.refusal
        self.starts += 1
        said, self._said = os.pipe()
        spoken, self._spoken = os.pipe()
        self.process = SimpleNamespace(
            pid=100 + self.starts, returncode=None, stderr=os.fdopen(said, "rb", buffering=0)
        )
        self.process.poll = lambda process=self.process: process.returncode
        return self.process, os.fdopen(spoken, "rb", buffering=0)  # type: ignore[return-value]

    def _receive(self) -> None:
        self.received += 1

    def say(self, words: bytes) -> None:
        os.write(self._said, words)

    def die(self, code: int = 1) -> None:
        for one in (self._said, self._spoken):
            os.close(one)
        self.process.returncode = code
        self.part.poll()

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.selector.close()


def test_it_is_started_at_once_and_serves_when_it_says_so(stage: Stage) -> None:
    stage.part.poll()
    assert stage.part.describe() == {"pid": 101, "serves": False, "ends": 0, "said": ""}
    stage.served = True
    assert stage.part.describe()["serves"]
    # It is not asked for a second proof: what it says may take a while, and its end is noticed in any case.
    stage.served = False
    assert stage.part.describe()["serves"]
    stage.die()
    assert not stage.part.describe()["serves"]


def test_pauses_grow_to_a_bound_and_it_is_never_given_up(stage: Stage) -> None:
    stage.part.poll()
    pauses = []
    for _ in range(60):
        stage.die()
        pauses.append(stage.part.seconds_to_start if stage.part.pid == 0 else 0.0)
        stage.now += pauses[-1] + 0.001
        stage.part.poll()
        assert stage.part.pid, "it is started again"
    assert pauses[:4] == pytest.approx([0.0, FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4])
    assert pauses == pytest.approx(sorted(pauses)) and pauses[-1] == pytest.approx(LONGEST_PAUSE)
    assert stage.starts == 61 and len(stage.notes) == 60


def test_one_that_has_lived_long_begins_anew(stage: Stage) -> None:
    stage.part.poll()
    for _ in range(5):
        stage.die()
        stage.now += 10
        stage.part.poll()
    stage.now += STEADY
    stage.die()
    assert stage.part.pid and stage.part.describe()["ends"] == 1


def test_its_last_words_are_kept_and_passed_on_with_its_name(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stage.part.poll()
    stage.say(b"Traceback (most recent call last):\n  somewhere\n")
    stage.turn()
    stage.say(b"ModuleNotFoundError: No module named 'dns'\n\n")
    stage.die()
    stage.now += 1
    said = "it ended with exit code 1: ModuleNotFoundError: No module named 'dns'"
    assert stage.part.describe()["said"] == said
    assert said in stage.notes[0]
    assert (
        "the part: Traceback (most recent call last):\nthe part:   somewhere\nthe part: ModuleNotFoundError"
        in capfd.readouterr().err
    )


def test_words_without_end_neither_fill_the_log_nor_the_memory(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stage.part.poll()
    for number in range(100):
        stage.say(b"x" * 9999 + f"\n{number}\n".encode())
        stage.turn()
    assert len(capfd.readouterr().err) < 400_000
    stage.die(-9)
    assert stage.part.describe()["said"] == "it ended with signal 9: 99"


def test_a_child_that_writes_without_end_does_not_hold_up_the_guard(capfd: pytest.CaptureFixture[str]) -> None:
    with open("/dev/zero", "rb") as endless:
        said = StandardError("the part", endless)
        for _ in range(3):
            said.read()
    assert len(capfd.readouterr().err) < 400_000


def test_what_cannot_be_started_is_tried_again_as_well(stage: Stage) -> None:
    stage.refusal = HostError("the program haproxy is not installed", hint="")
    stage.part.poll()
    assert "the program haproxy is not installed" in stage.part.describe()["said"]
    stage.refusal = None
    stage.now += 1
    stage.part.poll()
    assert stage.part.pid and stage.starts == 1


def test_what_it_said_with_its_end_is_received_and_nothing_after_that(stage: Stage) -> None:
    """The selector may have said that there is something on a channel which is closed by now."""
    stage.part.poll()
    ready = [key for key, _ in stage.selector.select(0)]
    waiting = [key.data for key in stage.selector.get_map().values()]
    stage.die()
    stage.die()
    assert stage.received == 2 and ready == []
    for callback in waiting:
        callback()
    assert stage.received == 2


class Polled(Stage):
    """A child that is asked for what it has said."""

    def __init__(self) -> None:
        super().__init__()
        self.part = SupervisedChild(
            "the part",
            self._start,
            self._receive,
            lambda: self.served,
            self.selector,
            self.notes.append,
            lambda: self.now,
            is_polled=True,
        )


class Channel(Stage):
    """A child that speaks in packets."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[bytes] = []
        self.part = ChannelChild(
            "the part", self._start_channel, self.said.append, self.selector, self.notes.append, lambda: self.now
        )

    def _start_channel(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        process, pipe = self._start()
        pipe.close()
        os.close(self._spoken)
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._spoken = self.theirs.detach()
        self.theirs = socket.socket(fileno=os.dup(self._spoken))
        return process, ours


@pytest.fixture
def channel() -> Iterator[Channel]:
    made = Channel()
    yield made
    made.theirs.close()
    made.selector.close()


def test_its_first_word_says_that_it_serves_and_the_rest_are_messages(channel: Channel) -> None:
    channel.part.poll()
    assert not channel.part.describe()["serves"]
    for word in (SERVES, b'{"one": 1}', b"not even JSON"):
        channel.theirs.send(word)
        channel.turn()
    assert channel.part.describe()["serves"] and channel.said == [b'{"one": 1}', b"not even JSON"]
    # The next life has to say so itself.
    channel.theirs.close()
    channel.die()
    channel.now += 1
    channel.part.poll()
    assert channel.part.pid and not channel.part.describe()["serves"]
    channel.theirs.send(SERVES)
    channel.turn()
    assert channel.part.describe()["serves"] and len(channel.said) == 2


def test_what_a_channel_said_with_its_end_is_received(channel: Channel) -> None:
    channel.part.poll()
    channel.theirs.send(b"last")
    channel.theirs.close()
    channel.die()
    assert channel.said == [b"last"]


def test_all_that_a_channel_said_before_its_end_is_received(channel: Channel) -> None:
    """Decisions that wait in the channel of a child have no other record."""
    channel.part.poll()
    words = [b"%d" % number for number in range(100)]
    for word in words:
        channel.theirs.send(word)
    channel.theirs.close()
    channel.die()
    assert channel.said == words


@pytest.mark.parametrize("kind", [Stage, Polled, Channel])
def test_a_child_of_any_kind_is_started_again_and_noted_alike(
    kind: type[Stage], capfd: pytest.CaptureFixture[str]
) -> None:
    stage = kind()
    stage.part.poll()
    for _ in range(3):
        stage.say(b"so it goes\n")
        if isinstance(stage, Channel):
            stage.theirs.close()
        stage.die(5)
        stage.now += 1
        stage.part.poll()
    pauses = ["at once", "in 0.1 s", "in 0.2 s"]
    assert stage.notes == [
        f"the part ended and is started again {pause}: it ended with exit code 5: so it goes" for pause in pauses
    ]
    assert capfd.readouterr().err == "the part: so it goes\n" * 3
    assert stage.starts == 4 and stage.part.describe()["ends"] == 3
    stage.selector.close()


def test_one_that_is_polled_does_not_wake_the_guard() -> None:
    stage = Polled()
    stage.part.poll()
    os.write(stage._spoken, b"much")
    stage.turn()
    assert stage.received == 0
    stage.selector.close()


def test_every_child_of_the_guard_is_a_supervised_one() -> None:
    """Whoever starts one outside of it would start it, end it and note its end in a way of its own."""
    package = Path(__file__).resolve().parents[3] / "ktrdr_vm/egress"
    starters = {"child_process.py", "telemetry/supervisor.py"}
    # What ends by itself, and is no part of the guard: the owner's command, and the removal of what has expired.
    starters |= {"escalations.py", "expiry.py"}
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if "process.start" in path.read_text()}
    assert found == starters
