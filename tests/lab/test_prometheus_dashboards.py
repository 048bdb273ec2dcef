"""Debian's Prometheus scrapes what `metrics` prints of two instances, and answers every query of the board: each with
its own data only."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt_binding import DomainFacts, DomainState
from ktrdr_vm.host.paths import PROJECT, Home
from ktrdr_vm.instance import inventory as discovery
from ktrdr_vm.monitoring.metrics import render_metrics
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import GateResult, RunReport

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)

FOLDER = PROJECT / "dashboards"
BOARD = json.loads((FOLDER / "instance.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in BOARD["panels"] for target in panel["targets"]]
# Two instances, of which every number differs.
INSTANCES = {"alpha": ("sandbox", 3), "beta": ("interactive", 70)}
PACKET = {
    "kind": "decision", "blocked": "b", "why": "w", "options": ["x", "y"], "recommendation": "x", "decision": "?", "evidence": "e",
}  # fmt: skip


class Domains:
    """Both run, as libvirt says."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def list_ours(self) -> list[DomainFacts]:
        return [
            DomainFacts(f"ktrdr-{name}", name, str(self._home.root), mode, DomainState.RUNNING, True)
            for name, (mode, _) in INSTANCES.items()
        ]


AT = "2026-01-01T00:00:00Z"


def make_instance(home: Home, name: str, mode: str, number: int) -> None:
    """What an instance and its newest run leave on the disk, made by the parts of the program that write it."""
    paths = home.instance(name)
    paths.directory.mkdir()
    Journal(paths.journal, name, mode=mode, created_at=f"2026-01-{number % 28 + 1:02}T00:00:00Z").save()
    (paths.directory / "overlay.qcow2").write_bytes(os.urandom(number * 8192))
    ledger = Ledger(paths.ledger, name)
    ledger.write("tls", "allow", name=f"{name}.example", count=number, bytes_in=number * 10, bytes_out=number * 20)
    ledger.write("drop", "deny", count=number * 2)
    ledger.write("telemetry", "note", accepted=number * 4, sent=number * 3, dropped=number)
    ledger.close()
    store = EscalationStore(paths.escalations, name)
    for each in range(1 if name == "alpha" else 2):
        store.submit(parse_packet({**PACKET, "decision": f"{each}?"}))
    run = home.run(name, "r-1")
    run.mkdir(parents=True)
    (run.parent / "latest").symlink_to("r-1")
    outcome: Literal["passed", "failed"] = "passed" if name == "alpha" else "failed"
    report = RunReport(
        instance_id=name, run_id="r-1", profile="p", mode=mode, plan_digest="d", image_digest="i", outcome=outcome, exit_code=0 if outcome == "passed" else 1,
        started_at=AT, duration_s=number, gates=(GateResult(f"gate-of-{name}", outcome, AT, number / 10),),
        residue=() if name == "alpha" else ("a tap",),
    )  # fmt: skip
    (run / "report.json").write_text(render_report_json(report))


@pytest.fixture
def scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address that serves what the command prints, on loopback."""
    monkeypatch.setattr(discovery, "list_tables", lambda _: [])
    monkeypatch.setattr(discovery, "list_links", lambda *_: {})
    home = Home(tmp_path / "home")
    home.create()
    for name, (mode, number) in INSTANCES.items():
        make_instance(home, name, mode, number)
    # alpha's guard lives, beta's does not.
    guard = home.instance("alpha").guard
    guard.mkdir()
    lock = (guard / "guard.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = render_metrics(home, Domains(home)).encode()  # type: ignore[arg-type]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    lock.close()


class Prometheus:
    """The real one, asked over its API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **words: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as answer:
            content = json.load(answer)
        assert content["status"] == "success", content
        return content["data"]

    def ask(self, expression: str, instance_id: str, environment: str) -> list[dict[str, Any]]:
        """A panel's query, its variables filled in as Grafana does."""
        filled = expression.replace("$instance_id", instance_id).replace("$environment", environment)
        result: list[dict[str, Any]] = self.get("query", query=filled)["result"]
        return result


@pytest.fixture
def prometheus(scraped: str, tmp_path: Path) -> Iterator[Prometheus]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER / "rules.yaml")],
        "scrape_configs": [{"job_name": "ktrdr-vm", "static_configs": [{"targets": [scraped]}]}],
    }
    # JSON is YAML.
    (tmp_path / "prometheus.yaml").write_text(json.dumps(configuration))
    words = [
        "--config.file",
        tmp_path / "prometheus.yaml",
        "--storage.tsdb.path",
        tmp_path / "tsdb",
        "--web.listen-address",
        address,
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        started = subprocess.Popen(["prometheus", *map(str, words)], stdout=log, stderr=log)
    made = Prometheus(address)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                if len(made.get("query", query="ktrdr_vm_instance_up")["result"]) == len(INSTANCES):
                    break
            except (OSError, urllib.error.URLError):
                assert started.poll() is None, (tmp_path / "prometheus.log").read_text()[-2000:]
            assert time.monotonic() < end, (tmp_path / "prometheus.log").read_text()[-2000:]
            time.sleep(0.2)
        yield made
    finally:
        started.kill()
        started.wait()


def test_every_panel_is_answered_for_each_instance_with_its_own_data(prometheus: Prometheus) -> None:
    answers: dict[str, dict[str, list[Any]]] = {}
    for name, (environment, _) in INSTANCES.items():
        for title, expression in QUERIES:
            series = prometheus.ask(expression, name, environment)
            assert series, f"{title} of {name} is empty"
            for one in series:
                assert (one["metric"]["instance_id"], one["metric"]["environment"]) == (name, environment), title
            answers.setdefault(title, {})[name] = sorted((str(one["metric"]), one["value"][1]) for one in series)
            # Sandboxes and what people live in are apart, also under one name.
            other = "interactive" if environment == "sandbox" else "sandbox"
            assert prometheus.ask(expression, name, other) == [] == prometheus.ask(expression, "nobody", environment)
            # Without the board's own condition the other one's data is there: the query, and nothing else, keeps it
            # out.
            bare = expression.replace('instance_id="$instance_id",environment="$environment"', "")
            assert bare != expression
            assert {one["metric"]["instance_id"] for one in prometheus.ask(bare, name, environment)} == set(
                INSTANCES
            ), title
    values = {
        title: {name: [value for _, value in rows] for name, rows in found.items()} for title, found in answers.items()
    }
    assert values["Egress decisions"] == {"alpha": ["3", "6"], "beta": ["70", "140"]}
    assert values["Telemetry records"] == {"alpha": ["12", "3", "9"], "beta": ["280", "70", "210"]}
    assert values["Guard"] == {"alpha": ["1"], "beta": ["0"]}
    assert values["Residue of the newest run"] == {"alpha": ["0"], "beta": ["1"]}
    assert values["Duration of the newest run"] == {"alpha": ["3"], "beta": ["70"]}


def test_the_variables_offer_what_is_there_and_rules_are_about_one_instance(prometheus: Prometheus) -> None:
    """As Grafana asks for `label_values`: of an environment only its own instances."""
    assert prometheus.get("label/environment/values", **{"match[]": "ktrdr_vm_instance_up"}) == [
        "interactive",
        "sandbox",
    ]
    for name, (environment, _) in INSTANCES.items():
        found = prometheus.get(
            "label/instance_id/values", **{"match[]": f'ktrdr_vm_instance_up{{environment="{environment}"}}'}
        )
        assert found == [name]
    end = time.monotonic() + 30
    while True:
        [group] = prometheus.get("rules")["groups"]
        raised = {rule["name"]: {alert["labels"]["instance_id"] for alert in rule["alerts"]} for rule in group["rules"]}
        if all(rule["health"] == "ok" for rule in group["rules"]) and raised["KtrdrGuardDown"]:
            break
        assert time.monotonic() < end, group
        time.sleep(0.2)
    assert raised == {
        "KtrdrGuardDown": {"beta"},
        "KtrdrResidue": {"beta"},
        "KtrdrEscalationWaits": {"alpha", "beta"},
        "KtrdrMuchDenied": set(),
    }
