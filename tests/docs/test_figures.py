"""The numbers that the pages promise are those of the program."""

from __future__ import annotations

import pytest

from ktrdr_vm.cli import mcp
from ktrdr_vm.egress import disk_watch, escalations, guard, ledger, ledger_totals
from ktrdr_vm.egress.resolver import decisions, upstream
from ktrdr_vm.egress.telemetry import otlp, relay, sender, supervisor
from ktrdr_vm.escalation import inbox, packet, store
from ktrdr_vm.evidence import envelope, forge, otel_export, run_directory
from ktrdr_vm.gates import loops, parser, task_parser, template_worker
from ktrdr_vm.gates.modules import base
from ktrdr_vm.gates.modules.guest_side import search
from ktrdr_vm.host import authorities, capacity, git, libvirt, name_servers, run_removal
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.inputs import committed_files
from ktrdr_vm.plan import guard_interface, haproxy
from ktrdr_vm.policy.owner_policy import EscalationPolicy, OwnerPolicy
from ktrdr_vm.profile import scalars
from ktrdr_vm.report.mask import MIN_LENGTH
from ktrdr_vm.run import run, workload
from ktrdr_vm.templates import store as templates

WORDS = {1.0: "second", 4: "four", 10: "ten", 20: "twenty", 200: "two hundred"}
# Of what Git writes.
_PATCH = next(int(word.partition("=")[2]) for word in git.BOUNDS if word.startswith("--fsize="))
PROMISES = [
    (
        "docs/egress.md",
        f"{haproxy.MAX_CONNECTIONS:,} connections, {guard_interface.MAX_FLOWS:,} including half-open ones",
    ),
    (
        "docs/egress.md",
        f"{decisions.RATE} DNS queries per second, {decisions.PROXY_RATE:,} queries of the proxy per second",
    ),
    ("docs/egress.md", f"{guard_interface.GATEWAY} for the gateway and {guard_interface.GUEST} for the guest"),
    ("docs/egress.md", f"port {guard_interface.INBOX_PORT} of the gateway"),
    ("docs/egress.md", f"port {guard_interface.OTLP_PORT} of the gateway"),
    ("docs/egress.md", f"a port of the gateway, from {guard_interface.BROKER_PORTS[0]} on"),
    ("docs/egress.md", f"more than {ledger.LINES_PER_SECOND} lines of one kind and verdict in a second"),
    ("docs/egress.md", f"up to {ledger.MOST_SUMS} destinations in a second"),
    ("docs/egress.md", f"two files of {ledger.MAX_BYTES >> 20} MiB"),
    ("docs/egress.md", f"of each kind and verdict for {ledger_totals.MOST_TOTALS:,} destinations"),
    ("docs/egress.md", f"The guard checks both tables every {WORDS[guard.POLL]}."),
    ("docs/egress.md", f"The guard reads them every {WORDS[guard.POLL]}."),
    ("docs/egress.md", f"the first {'three' if name_servers.MOST == 3 else '?'}, with a scope"),
    ("docs/egress.md", f"does not answer within {upstream.HESITATION} s"),
    ("docs/egress.md", f"Each server is tried twice, for up to {upstream.UPSTREAM_TIMEOUT:g} s each time"),
    ("docs/egress.md", f"The first {'MiB' if name_servers._MAX_HOSTS == 1 << 20 else '?'} of the file is read"),
    ("docs/egress.md", f"Files of more than {authorities._MOST_BYTES >> 10} KiB are left out"),
    ("docs/egress.md", f"certificates after the {authorities._MOST}nd"),
    ("docs/escalations.md", f"{WORDS[inbox.PER_MINUTE]} packets per minute"),
    ("docs/escalations.md", f"while fewer than {WORDS[escalations._MAX_HOOKS]} of these commands run"),
    (
        "docs/escalations.md",
        f"{WORDS[store.MAX_PENDING]} unanswered escalations, and {WORDS[store.MAX_STORED]} in total",
    ),
    ("docs/escalations.md", f"port {guard_interface.INBOX_PORT} of the instance's gateway"),
    ("SECURITY.md", f"shorter than {MIN_LENGTH} bytes are not masked"),
    ("SECURITY.md", f"which it checks each {WORDS[guard.POLL]}"),
    ("SECURITY.md", f"with {template_worker._MEMORY >> 30} GiB at most"),
    ("docs/broker.md", f"at most {scalars.MAX_HEADER} characters as a header"),
    (
        "docs/telemetry.md",
        f"| {otlp.MAX_BODY >> 20} MiB, {otlp.MAX_RECORDS:,} records, {otlp.MAX_RESOURCES} resources,"
        f" {otlp.MAX_MESSAGES:,} parts, {otlp._MAX_JSON_VALUES:,} values of JSON",
    ),
    ("docs/telemetry.md", f"| {otlp.MAX_ATTRIBUTES}; further ones are removed"),
    ("docs/telemetry.md", f"| {relay.REQUESTS_PER_SECOND:g} per second, bursts of {relay.REQUESTS_AT_ONCE:g} |"),
    (
        "docs/telemetry.md",
        f"| {relay.BYTES_PER_SECOND / (1 << 20):g} MiB per second, bursts of {relay.BYTES_AT_ONCE / (1 << 20):g} MiB |",
    ),
    (
        "docs/telemetry.md",
        f"| {'a quarter' if relay.CORE == 0.25 else '?'} of a core, bursts of {relay.CORE_SECONDS_AT_ONCE:g} seconds |",
    ),
    ("docs/telemetry.md", f"| {relay.CONNECTIONS} at a time, {relay.REQUEST_LIMIT:g} seconds each |"),
    ("docs/telemetry.md", f"| {sender.QUEUE_LENGTH} requests, {sender.QUEUE_BYTES >> 20} MiB |"),
    ("docs/telemetry.md", f"is sent up to {WORDS[sender._TRIES]} times"),
    ("docs/telemetry.md", f"{sender._LONGEST_PAUSE:g} seconds at most"),
    ("docs/telemetry.md", f"Every {supervisor.WRITE_EVERY:g} seconds the ledger gets a line"),
    ("docs/telemetry.md", f"one trace of at most {otel_export.MAX_SPANS:,} spans"),
    ("docs/telemetry.md", f"Sending takes at most {otel_export.FLUSH_LIMIT:g} seconds"),
    ("docs/verify.md", f"at most {committed_files.MAX_FILES:,} files and {committed_files.MAX_BYTES >> 30} GiB"),
    ("docs/verify.md", f"for at most {forge.NOTIFY_LIMIT:g} seconds"),
    ("docs/verify.md", f"at most {forge._MAX_DESCRIPTION} characters"),
    ("docs/verify.md", f"larger than {envelope.MAX_ENVELOPE >> 20} MiB"),
    ("docs/verify.md", f"more than {envelope.MAX_DEPTH} levels"),
    ("docs/reliability.md", f"below {capacity.DISK_FLOOR >> 10} GiB free, no instance is created"),
    (
        "docs/reliability.md",
        f"below {capacity.DISK_LAST >> 10} GiB, guests are paused, and they continue at {capacity.DISK_ENOUGH / 1024:g} GiB",
    ),
    ("docs/reliability.md", f"{capacity.MEMORY_FLOOR} MiB stay available"),
    ("docs/reliability.md", f"wait up to {libvirt.RETURN_LIMIT:g} s for the daemon"),
    ("docs/reliability.md", f"default {OwnerPolicy().most_instances}; `ttl` ends them"),
    ("docs/reliability.md", f"its last {run_directory.MAX_CONSOLE >> 20} MiB as evidence"),
    (
        "docs/reliability.md",
        f"two files of {ledger.MAX_BYTES >> 20} MiB, and totals of earlier files; {ledger.LINES_PER_SECOND} lines per second",
    ),
    ("docs/reliability.md", f"| log of the guard | {disk_watch.MAX_LOG >> 20} MiB |"),
    ("docs/reliability.md", f"| {store.MAX_PENDING} unanswered, {store.MAX_STORED} in total |"),
    (
        "docs/reliability.md",
        f"the newest {run.KEPT_RUNS} runs of an instance_id; `gc` removes evidence that is older than"
        f" {run_removal.KEPT_DAYS} days",
    ),
    ("docs/reliability.md", f"removes requests that ended more than {run_removal.KEPT_DAYS} days ago"),
    ("docs/reliability.md", f"templates that were not used for {templates.UNUSED_DAYS} days"),
    ("docs/for-agents.md", f"the end of your output ({workload.KEPT_OUTPUT >> 10} KiB)"),
    ("docs/for-owners.md", f"have not been used for {templates.UNUSED_DAYS} days"),
    (
        "docs/for-owners.md",
        f"newest {run.KEPT_RUNS} runs of each instance_id are kept, and `gc` removes evidence that is older than"
        f" {run_removal.KEPT_DAYS} days",
    ),
    (
        "docs/for-owners.md",
        f"at most {OwnerPolicy().largest.vcpus} vCPUs, {OwnerPolicy().largest.memory >> 10} GiB of memory and"
        f" {OwnerPolicy().largest.disk >> 10} GiB of disk for a VM, at most {OwnerPolicy().most_instances} instances",
    ),
    ("docs/for-reviewers.md", f"a commit whose patch is larger than {_PATCH >> 20} MiB"),
    ("docs/playbooks.md", f"a list of at most {loops.MAX_LOOP:,} items"),
    ("docs/playbooks.md", f"lists files, at most {search.MAX_FOUND:,}"),
    ("docs/playbooks.md", f"a file of at most {search.MAX_SLURP >> 20} MiB"),
    (
        "docs/playbooks.md",
        f"the first {base.MAX_REGISTERED >> 20} MiB of each stream and the last {base._TAIL >> 10} KiB",
    ),
    (
        "docs/playbooks.md",
        f"more than {task_parser.MAX_TASKS:,} tasks, {parser.MAX_FILES} files or {task_parser.MAX_INCLUDE_DEPTH} levels",
    ),
    ("docs/templates.md", f"not used for {templates.UNUSED_DAYS} days"),
    ("docs/python.md", f"at most {mcp.MOST_CALLS} at a time"),
    ("docs/owner-policy.md", f"{WORDS[escalations._MAX_HOOKS].capitalize()} run at one time for an instance"),
]


@pytest.mark.parametrize(("page", "promise"), PROMISES)
def test_the_number_is_that_of_the_program(page: str, promise: str) -> None:
    text = " ".join((PROJECT / page).read_text(encoding="utf-8").split())
    assert promise in text


def test_the_defaults_of_the_owners_policy_are_those_of_its_table() -> None:
    text = (PROJECT / "docs/owner-policy.md").read_text(encoding="utf-8")
    policy, answers = OwnerPolicy(), EscalationPolicy()
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[3].strip(" `") for line in text.split("\n") if line[:3] == "| `"
    }
    largest = policy.largest
    assert rows["resources.max"] == f"{largest.vcpus}, {largest.memory >> 10} GiB, {largest.disk >> 10} GiB"
    assert rows["instances.max"] == str(policy.most_instances)
    assert rows["escalations.wait"] == f"{answers.wait // 60}m"
    assert rows["escalations.longest"] == f"{answers.longest // 3600}h"
    assert rows["escalations.kinds"].replace("`", "") == ", ".join(sorted(answers.kinds, key=packet.KINDS.index))
