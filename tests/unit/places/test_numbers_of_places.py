"""Numbers that the page about places states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.places import retention, service, slurm
from ktrdr_vm.places.model import parse_places
from ktrdr_vm.places.request import Request
from ktrdr_vm.places.request_state import RETRIED
from ktrdr_vm.places.slurm import SlurmEngine
from ktrdr_vm.places.spool import Spool


def test_times_and_sizes_are_those_of_the_page() -> None:
    assert (retention.KEPT_DAYS, retention.SILENT_DAYS, service._GONE) == (90, 360, 120)
    assert (slurm._OVERHEAD, slurm._MOST_TOGETHER, RETRIED) == (768, 1000, (3, 4))


def test_what_a_place_does_not_say_has_the_defaults_of_the_page() -> None:
    places = parse_places("places:\n  a: {kind: ssh, host: h}\n  b: {kind: slurm, spool: /s}\n", "places.yaml")
    for one in places.values():
        assert (one.attempts, one.grace, one.together, one.program, one.ssh_config) == (1, 120, 0, "ktrdr-vm", "")
    # The programs of this host.
    assert places["b"].host == "" and not places["b"].is_local


def test_more_than_an_array_holds_is_refused_before_sbatch_is_called(
    tmp_path: Path, make_request: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.process, "run", lambda *_, **__: pytest.fail("sbatch was called"))
    with pytest.raises(UsageError, match="more than 1000 requests at once"):
        SlurmEngine("ktrdr-vm").start(Spool(tmp_path), [make_request()] * 1001, {})


def test_a_job_has_no_secret(
    tmp_path: Path, make_request: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.process, "run", lambda *_, **__: pytest.fail("sbatch was called"))
    with pytest.raises(UsageError, match="this request needs secrets: token"):
        SlurmEngine("ktrdr-vm").start(Spool(tmp_path), [make_request(secrets=("token",))], {})
