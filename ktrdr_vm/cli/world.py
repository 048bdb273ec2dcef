"""Commands of a person without root: each enters that person's world first, or asks a child that does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TypeVar

import click

from ktrdr_vm.errors import KtrdrError

Answer = TypeVar("Answer")


def ask_in_world(question: Callable[[], Answer]) -> Answer:
    """The answer, which JSON can carry, to a question that only a process in the world can ask.

    For commands that go on outside of it, such as a client that binds ports of this host. With root there is no world.
    """
    if os.geteuid() == 0:
        return question()
    reads, writes = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os._exit(_answer(question, writes))
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        # It has shown its error.
        raise click.exceptions.Exit(code if code > 0 else 1)
    answer: Answer = json.loads(said)
    return answer


def _answer(question: Callable[[], object], writes: int) -> int:
    from ktrdr_vm.cli.output import show_error
    from ktrdr_vm.world.own import enter_own_world

    try:
        enter_own_world()
        os.write(writes, json.dumps(question()).encode())
        return 0
    except KtrdrError as error:
        show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
