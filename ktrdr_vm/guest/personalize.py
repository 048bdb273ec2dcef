"""The instance's identity inside the guest, written after the first SSH login, for a cold boot and a fork alike."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.guide import make_facts, render_guide
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.plan.identity import Identity
from ktrdr_vm.plan.plan import Plan

# Ten emulated guests on two cores share what one has for itself.
GUEST_LIMIT = 300.0
_DATA = Path(__file__).parent / "data"

# Docker takes new labels on reload without touching a container; a guest without Docker has none to label.
_WRITE = """set -eu
install -d -m 0755 /etc/ktrdr
install -m 0644 /dev/null /etc/ktrdr/identity.json
printf '%s\\n' "$IDENTITY" > /etc/ktrdr/identity.json
install -m 0644 /dev/null /etc/ktrdr/README.md
printf '%s' "$GUIDE" > /etc/ktrdr/README.md
install -d -m 0755 /etc/ssh
printf '%s' "$KNOWN_HOSTS" > /etc/ssh/ssh_known_hosts
install -d -m 0755 /usr/local/bin
printf '%s' "$ESCALATE" > /usr/local/bin/ktrdr-escalate
chmod 0755 /usr/local/bin/ktrdr-escalate
touch /etc/environment
sed -i '/^# ktrdr-vm begin$/,/^# ktrdr-vm end$/d' /etc/environment
cat >> /etc/environment
if [ -d /etc/docker ] && command -v python3 >/dev/null; then
  python3 - "$LABEL" <<'PY'
import json, sys
path = "/etc/docker/daemon.json"
try:
    with open(path) as file: content = json.load(file)
except FileNotFoundError:
    content = {}
content["labels"] = [sys.argv[1]]
with open(path, "w") as file: json.dump(content, file)
PY
  ! systemctl is-active --quiet docker || systemctl reload docker
fi
"""


def make_environment(identity: Identity, mode: str, extra: Mapping[str, str]) -> dict[str, str]:
    """What every process of the instance finds in its environment. The identity cannot be overridden by a profile."""
    instance_id = identity.instance_id
    attributes = f"service.namespace={instance_id},ktrdr.instance_id={instance_id},ktrdr.environment={mode}"
    return {
        **extra,
        "KTRDR_INSTANCE_ID": instance_id,
        "COMPOSE_PROJECT_NAME": instance_id,
        "OTEL_RESOURCE_ATTRIBUTES": attributes,
    }


def personalize(guest: Guest, plan: Plan, environment: Mapping[str, str]) -> None:
    """Write the identity, and what binds the guest, where logins, Docker, programs and people find it."""
    identity = plan.identity
    lines = ["# ktrdr-vm begin", *(f"{name}={_quote(value)}" for name, value in sorted(environment.items())), "# ktrdr-vm end", ""]
    written = guest.run(
        _WRITE,
        stdin="\n".join(lines).encode(),
        environment={
            "IDENTITY": json.dumps(make_facts(plan), indent=2),
            "GUIDE": render_guide(plan),
            "KNOWN_HOSTS": (_DATA / "known_hosts").read_text(encoding="utf-8"),
            "ESCALATE": (_DATA / "ktrdr-escalate").read_text(encoding="utf-8"),
            "LABEL": f"ktrdr.instance_id={identity.instance_id}",
        },
        become=True,
        timeout=GUEST_LIMIT,
    )
    if written.exit_code != 0:
        raise GuestError(
            f"the identity could not be written: {written.stderr.decode('utf-8', 'replace')[-300:].strip()}",
            where=identity.instance_id,
            hint="the image needs a user with sudo, and sh",
        )


def _quote(value: str) -> str:
    """As pam_env reads /etc/environment: one line, quotes kept out of the value."""
    return shlex.quote(value.replace("\n", " ")) if value else '""'
