"""The login host of a cluster, and what a person asks there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laboratory.cluster import Cluster
from laboratory.far import Far


def make_far(cluster: Cluster, place: Path) -> Far:
    """Its programs of Slurm reach the controller; `ktrdr-vm` there and on the nodes is that of the far end."""
    made = Far(place)
    enter = " ".join(cluster.inside())
    made.more = f'export SLURM_CONF={cluster.environment["SLURM_CONF"]}\ncase $(uname -n) in n1|n2) ENTER=;; *) ENTER="{enter}";; esac'
    made.set(FAR_SECONDS="1")
    places = place / "config/ktrdr-vm/places.yaml"
    places.write_text(
        f"places:\n  cluster: {{kind: slurm, host: far, ssh_config: {place}/ssh/client, program: {place}/ktrdr-vm,"
        f" spool: {cluster.shared}, cache: {cluster.local}, options: [--partition=vm], attempts: 2, grace: 10s}}\n"
    )
    return made


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def find_states(far: Far) -> dict[str, dict[str, Any]]:
    return {one["request_id"]: one for one in json.loads(far.call("queue", "--json"))}


def list_refs(far: Far) -> list[str]:
    return far.git("for-each-ref", "--format=%(refname)", "refs/ktrdr").splitlines()
