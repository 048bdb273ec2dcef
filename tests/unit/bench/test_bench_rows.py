"""What the bench makes of its samples, and that every peer gives the samples which the rows ask for. No machine is
started."""

from __future__ import annotations

import sys
import time

import pytest

from ktrdr_vm.host.paths import PROJECT

sys.path.insert(0, str(PROJECT))

from bench.place import LIMIT  # first: it knows where the lab's parts are

from bench.peers import PEERS, drive, find_steps, install  # isort: skip
from bench.prober import Watch
from bench.rows import ROWS, Row, Samples


def evaluate(row: Row, **rounds: dict[int, float]) -> dict[str, object]:
    samples = Samples()
    for name, values in rounds.items():
        for number, value in values.items():
            samples.add(number, {name: value})
    found = samples.evaluate(row)
    assert found is not None
    return found


def test_a_ratio_stands_on_the_same_round() -> None:
    found = evaluate(Row("m", "top", "bottom"), top={0: 2.0, 1: 9.0}, bottom={0: 1.0, 1: 3.0})
    assert found["samples"] == [2.0, 3.0]


@pytest.mark.parametrize("rare", ["top", "bottom"])
def test_a_part_that_is_measured_rarely_is_not_counted_often(rare: str) -> None:
    values = {"top": {0: 10.0, 1: 20.0, 2: 30.0}, "bottom": {0: 2.0, 1: 2.0, 2: 2.0}}
    values[rare] = {0: values[rare][0]}
    found = evaluate(Row("m", "top", "bottom"), **values)
    assert (found["n"], found["samples"]) == (1, [5.0])


def test_what_is_not_the_programs_is_taken_off() -> None:
    assert evaluate(Row("m", "top", minus="part"), top={0: 3.0}, part={0: 1.0})["value"] == 2.0


def test_a_row_without_one_of_its_parts_is_left_out() -> None:
    samples = Samples()
    samples.add(0, {"top": 1.0})
    assert samples.evaluate(Row("m", "top", "bottom")) is None


def test_the_rows_ask_for_what_the_peers_give() -> None:
    seen = Watch(time.monotonic(), ssh=1.0, docker=2.0)
    given = {name for peer in PEERS for stock in (False, True) for name in drive.name_samples(peer, seen, stock=stock)}
    asked = {name for row in ROWS for name in row.samples_needed if any(name.startswith(f"{peer}.") for peer in PEERS)}
    assert len(PEERS) == 4 and asked and asked <= given
    # None of the four is left out of the table, with either image.
    assert {name for name in given if name.endswith(".ssh")} <= asked


def test_a_peer_that_does_not_install_is_no_step() -> None:
    steps = find_steps({"virt-install": "", "debvm-run": "it does not install: no mirror"})
    assert set(steps) == {"virt-install", "virt-install.stock"}
    assert steps["virt-install"][1] < steps["virt-install.stock"][1]
    assert LIMIT > drive.LIMIT_S > 0


def test_a_patch_that_no_longer_fits_is_an_error_and_not_another_tool() -> None:
    assert install.apply_patches("a\nb\n", (("a", "x"),)) == "x\nb\n"
    for text in ("b\n", "a\na\n"):
        with pytest.raises(ValueError, match="times"):
            install.apply_patches(text, (("a", "x"),))
