"""One real run: a service in a container with OpenTelemetry's SDK, a collector of the owner's, a credential that waits
for a gate, and a mirror that Docker is served with another.

The SDK is this project's own, packed and copied in: the guest's network is closed. The image's base container carries
Python.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import importlib.util
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.collector import ADDRESS, PORT, LabCollector
from laboratory.command import assert_nothing_left
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from laboratory.servers import APPLICATIONS
from test_egress_broker import HOST, Provider

from ktrdr_vm.api import apply
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.plan import brokers
from ktrdr_vm.policy import load as owner_policy

pytestmark = [pytest.mark.usefixtures("image", "libvirt")]

MIRROR = "other.test.lab"
TOKEN, KEY = "owners-token-4Kd8", "sk-lab-Jw3Tq81Zr6"
PROFILE = f"""\
version: 1
name: observed
image: debian-13-docker
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
telemetry: {{otlp: true}}
secrets:
  - name: model-key
    source: {{env: KTRDR_LAB_KEY}}
    broker: {{host: {HOST}, header: "x-api-key: {{{{ secret }}}}", base_url_env: MODEL_URL, paths: ["/v1/"], after: startability}}
  - name: mirror-password
    source: {{env: KTRDR_LAB_KEY}}
    broker:
      host: {MIRROR}
      header: "Authorization: Basic {{{{ ('reader:' ~ secret) | b64encode }}}}"
      base_url_env: MIRROR_URL
      paths: ["/v2/"]
      docker_mirror: true
gates: [startability, ./gates/after.yaml]
workload:
  command: [sh, -c, 'curl -s -m 90 -o /dev/null -w "workload %{{http_code}}\\n" "$MODEL_URL/v1/workload" && sh /srv/observed.sh']
"""
# The base gate of this workspace: before it has passed, nothing leaves.
GATE = """\
- name: startability
  hosts: all
  tasks:
    - name: the credential is not used before the gate
      ansible.builtin.shell: {cmd: 'curl -s -m 90 -o /dev/null -w "%{http_code}" "$MODEL_URL/v1/early"'}
      register: early
      failed_when: early.stdout != "403"
    - name: what the service needs
      ansible.builtin.copy: {src: "{{ item }}", dest: "/srv/{{ item }}", mode: "0644"}
      loop: [sdk.tar.gz, emit.py, observed.sh]
      become: true
    - name: unpacked
      ansible.builtin.shell: {cmd: "mkdir /srv/sdk && tar -xzf /srv/sdk.tar.gz -C /srv/sdk"}
      become: true
"""
AFTER = """\
- name: after
  hosts: all
  tasks:
    - name: it is used after the gate
      ansible.builtin.shell: {cmd: 'curl -s -m 90 -o /dev/null -w "%{http_code}" "$MODEL_URL/v1/late"'}
      register: late
      failed_when: late.stdout != "200"
    - name: Docker pulls from the mirror
      ansible.builtin.command: {cmd: docker pull -q tiny:latest}
    - name: a gate sends telemetry as well, by hand and in JSON
      ansible.builtin.shell:
        cmd: >-
          curl -s -m 90 --fail -H "Content-Type: application/json" "$OTEL_EXPORTER_OTLP_ENDPOINT/v1/logs"
          -d '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"by hand"}}]}]}]}'
"""
OBSERVED = """\
docker run --rm --pull never -e OTEL_EXPORTER_OTLP_ENDPOINT -e OTEL_EXPORTER_OTLP_PROTOCOL -e PYTHONPATH=/sdk \
  -v /srv/sdk:/sdk:ro -v /srv/emit.py:/emit.py:ro ktrdr-base:13 python3 /emit.py
"""
PACKAGES = (
    "opentelemetry",
    "google",
    "requests",
    "urllib3",
    "certifi",
    "charset_normalizer",
    "idna",
    "typing_extensions",
)


def pack_sdk(target: Path) -> None:
    """The SDK as it is installed here: Python, and libraries that every later Python can load."""
    with tarfile.open(target, "w:gz") as archive:
        sites = set()
        for name in PACKAGES:
            found = importlib.util.find_spec(name)
            assert found is not None
            place = Path(next(iter(found.submodule_search_locations or [str(found.origin)])))
            archive.add(place, place.name, filter=lambda one: None if "__pycache__" in one.name else one)
            sites.add(place.parent)
        for facts in sorted(path for site in sites for path in site.glob("opentelemetry*.dist-info")):
            archive.add(facts, facts.name)


class Registry:
    """A registry with one image of one empty layer, for who knows the password."""

    def __init__(self) -> None:
        layer = gzip.compress(bytes(1024))
        made = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [_digest(bytes(1024))]},
        }
        configuration = json.dumps(made).encode()
        image = "application/vnd.oci.image"
        parts = ((configuration, f"{image}.config.v1+json"), (layer, f"{image}.layer.v1.tar+gzip"))
        described = [{"mediaType": kind, "digest": _digest(content), "size": len(content)} for content, kind in parts]
        self._kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": self._kind, "config": described[0], "layers": described[1:]}
        ).encode()
        self._content = {"/v2/": b"{}", "/v2/library/tiny/manifests/latest": manifest}
        self._content[f"/v2/library/tiny/manifests/{_digest(manifest)}"] = manifest
        self._content |= {f"/v2/library/tiny/blobs/{_digest(content)}": content for content, _ in parts}
        self.seen: list[tuple[str, str]] = []

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> None:
        credential = request.headers.get("Authorization", "")
        path = request.path.partition("?")[0]
        self.seen.append((path, credential))
        known = credential == "Basic " + base64.b64encode(f"reader:{KEY}".encode()).decode()
        content = self._content.get(path) if known else None
        request.send_response(200 if content is not None else 404 if known else 401)
        request.send_header("Content-Type", self._kind if "/manifests/" in path else "application/octet-stream")
        if content is not None:
            request.send_header("Docker-Content-Digest", _digest(content))
        request.send_header("Content-Length", str(len(content or b"")))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content or b"")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def owner(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The owner's policy and the collector's credential, and the lab's authority for the host's."""
    policy, headers = lab.home.root / "policy.yaml", lab.home.root / "collector-headers"
    headers.write_text(f"Authorization: Bearer {TOKEN}\n")
    headers.chmod(0o600)
    policy.write_text(f"telemetry: {{collector: 'http://{ADDRESS}:{PORT}', headers_file: {headers}, runs: true}}\n")
    authority = lab.home.root / "authority.pem"
    authority.write_text(lab.world.authority.pem)
    authority.chmod(0o644)
    monkeypatch.setattr(owner_policy, "POLICY_PATH", str(policy))
    monkeypatch.setattr(brokers, "_AUTHORITIES", str(authority))
    monkeypatch.setenv("KTRDR_VM_HOME", str(lab.home.root))
    monkeypatch.setenv("KTRDR_LAB_KEY", KEY)
    yield
    for path in (policy, headers, authority):
        path.unlink()


def test_what_a_container_emits_arrives_with_the_runs_identity_and_a_credential_waits_for_its_gate(
    lab: Lab, owner: None, tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path)
    (workspace / "observed.yaml").write_text(PROFILE)
    for folder, name, text in (("playbooks", "startability.yaml", GATE), ("gates", "after.yaml", AFTER)):
        (workspace / folder).mkdir()
        (workspace / folder / name).write_text(text)
    pack_sdk(workspace / "playbooks" / "sdk.tar.gz")
    (workspace / "playbooks" / "emit.py").write_bytes((PROJECT / "tests" / "lab" / "emit.py").read_bytes())
    (workspace / "playbooks" / "observed.sh").write_text(OBSERVED)
    provider = APPLICATIONS[HOST] = Provider()
    registry = APPLICATIONS[MIRROR] = Registry()
    instance_id = lab.new_id("observed")
    with LabCollector() as collector:
        try:
            report = apply(workspace / "observed.yaml", workspace=workspace, instance_id=instance_id)
        finally:
            del APPLICATIONS[HOST], APPLICATIONS[MIRROR]
    run = lab.home.run(instance_id, report.run_id)
    shown = json.dumps(
        [report.message, report.workload and report.workload.stdout, [gate.message for gate in report.gates]]
    )
    assert report.outcome == "passed", shown
    assert report.workload is not None and report.workload.stdout.splitlines() == ["workload 200", "emitted"], shown

    # Everything that came has one identity, the true one; the three signals of the container are complete.
    true = {"ktrdr.instance_id": instance_id, "ktrdr.environment": "sandbox", "ktrdr.run_id": report.run_id}
    for one in collector.received:
        assert one.headers["Authorization"] == f"Bearer {TOKEN}"
        for resource in one.resources:
            assert {name: resource[name] for name in true} == {name: [value] for name, value in true.items()}
        assert (
            b"another" not in one.message.SerializeToString() and b"production" not in one.message.SerializeToString()
        )
    by_service: dict[str, list[str]] = {}
    for one in collector.received:
        for resource in one.resources:
            by_service.setdefault(resource.get("service.name", [""])[0], []).append(one.path)
    assert sorted(by_service["in-a-container"]) == ["/v1/logs", "/v1/metrics", "/v1/traces"]
    assert by_service[""] == ["/v1/logs"] and by_service["ktrdr-vm"] == ["/v1/traces", "/v1/metrics"]
    sent = {
        one.path: one.message
        for one in collector.received
        if one.resources[0].get("service.name") == ["in-a-container"]
    }
    [span] = sent["/v1/traces"].resource_spans[0].scope_spans[0].spans
    assert (span.name, [one.key for one in span.attributes], len(span.events)) == ("handle", ["kept"], 1)
    points = {metric.name: metric for metric in sent["/v1/metrics"].resource_metrics[0].scope_metrics[0].metrics}
    assert points["handled"].sum.data_points[0].as_int == 3
    assert sent["/v1/logs"].resource_logs[0].scope_logs[0].log_records[0].body.string_value == "done"
    own = {one.path: one.message for one in collector.received if one.resources[0].get("service.name") == ["ktrdr-vm"]}
    names = [span.name for span in own["/v1/traces"].resource_spans[0].scope_spans[0].spans]
    assert {
        "run",
        "phase boot",
        "resource guard",
        "gate startability",
        "task unpacked",
        "phase workload",
        "gate after",
    } <= set(names)

    # The credential: refused before the gate and in the ledger, used after it, by the workload and a later gate.
    assert [one.target for one in provider.seen] == ["/v1/workload", "/v1/late"]
    assert all(one.values("x-api-key") == [KEY] for one in provider.seen)
    rows = [json.loads(line) for line in (run / "egress.jsonl").read_text().splitlines()]
    told = [
        (row["verdict"], row["path"], row["status"])
        for row in rows
        if row["kind"] == "broker" and row.get("rule") == "model-key" and "path" in row
    ]
    assert told == [("deny", "/v1/early", 403), ("allow", "/v1/workload", 200), ("allow", "/v1/late", 200)]
    counted = {
        name: sum(row.get(name, 0) for row in rows if row["kind"] == "telemetry")
        for name in ("accepted", "sent", "dropped", "claims")
    }
    assert counted["accepted"] == 4 and counted["dropped"] == 0 and counted["claims"] >= 12, counted
    # Docker in the guest pulled through the mirror, with a password that it never had.
    assert {path for path, _ in registry.seen} >= {"/v2/library/tiny/manifests/latest"}
    assert {credential[:6] for _, credential in registry.seen} == {"Basic "}
    # Neither credential is in anything that the run left.
    for path in [path for path in run.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert KEY.encode() not in content and TOKEN.encode() not in content, path
    assert_nothing_left(lab, instance_id)
