"""The documents for an agent in its guest: identity, limits, and how to request more. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktrdr_vm.plan.plan import Plan

NOTES = ".ktrdr/notes"
"""The folder for notes for the reviewer, beneath the workspace."""
REVIEWS = ".ktrdr/review"
"""The folder for review comments, beneath the workspace. One numbered file for each push with comments; they are not
committed."""
NOTE_FILES = {
    "summary.md": "the work that was done, as first paragraph of the pull request",
    "choices.md": "design decisions and their reasons",
    "spec.md": "which part of the work implements which part of its specification",
}


def make_facts(plan: Plan) -> dict[str, Any]:
    """/etc/ktrdr/identity.json, for programs."""
    profile = plan.profile
    return {
        "instance_id": plan.identity.instance_id,
        "mode": profile.mode,
        "profile": profile.name,
        "base_commit": plan.facts.base_commit,
        "base_ref": plan.facts.base_ref,
        "workspace": profile.workspace.target if profile.workspace else None,
        "notes": f"{profile.workspace.target}/{NOTES}" if profile.workspace else None,
        "egress": [
            {"destination": rule.destination, "ports": list(rule.ports), "reason": rule.reason} for rule in plan.rules
        ],
        "secrets": [{"name": secret.name, "path": secret.path, "seconds": secret.ttl} for secret in profile.delivered],
        "brokered": [
            {"name": secret.name, "host": broker.host, "variable": broker.base_url_env, "after": broker.after}
            for secret, broker in profile.brokered
        ],
        "requests": [
            {"host": one.host, "variable": one.base_url_env, "methods": list(one.methods), "paths": list(one.paths)}
            for one in profile.limited
        ],
        "telemetry": profile.telemetry.otlp,
        "mounts": [{"target": mount.target, "readonly": mount.readonly} for mount in profile.mounts],
        "workload_seconds": profile.workload.timeout if profile.workload else None,
        "gates": list(profile.gates),
        "verify": profile.verify,
        "escalate": "ktrdr-escalate",
    }


def render_guide(plan: Plan) -> str:
    """/etc/ktrdr/README.md, for agents and people."""
    # Imported late: commands on an instance that exists, such as `exec`, write no guide.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown for a guest that wrote none of it
    ).get_template("guide.md.j2")
    return (
        template.render(
            identity=plan.identity.instance_id,
            profile=plan.profile,
            rules=plan.rules,
            notes=NOTES,
            note_files=NOTE_FILES,
            reviews=REVIEWS,
        )
        + "\n"
    )
