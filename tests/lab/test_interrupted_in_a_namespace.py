"""An interrupt at any moment leaves a process in the network namespace in which it began."""

from __future__ import annotations

import os

import pytest
from laboratory.interrupts import interrupt_often
from laboratory.lab import Lab

from ktrdr_vm.host import netns

NAME = "ktrdr-lab-interrupted"
HERE = "/proc/thread-self/ns/net"


def read_here() -> str:
    return os.readlink(HERE)


def test_no_interrupt_leaves_the_caller_in_the_namespace(lab: Lab) -> None:
    home, inside = read_here(), []

    def check() -> None:
        assert read_here() == home

    netns.create(NAME)
    try:
        interrupts = interrupt_often(
            lambda: inside.append(netns.run_inside(NAME, read_here)), check, longest=4e-4, seconds=6
        )
    finally:
        netns.remove(NAME)
    assert interrupts > 100 and inside and home not in inside


def test_what_is_called_there_raises_to_the_caller(lab: Lab) -> None:
    netns.create(NAME)
    try:
        with pytest.raises(ZeroDivisionError):
            netns.run_inside(NAME, lambda: 1 // 0)
        assert netns.run_inside("", read_here) == read_here()
    finally:
        netns.remove(NAME)
