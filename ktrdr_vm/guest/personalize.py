"""The instance's identity inside the guest, written after the first SSH login, for a cold boot and a fork alike."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.plan.identity import Identity

GUEST_LIMIT = 60.0

# Docker takes new labels on reload without touching a container; a guest without Docker has none to label.
_WRITE = """set -eu
install -d -m 0755 /etc/ktrdr
install -m 0644 /dev/null /etc/ktrdr/identity.json
printf '%s\\n' "$IDENTITY" > /etc/ktrdr/identity.json
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


def personalize(guest: Guest, identity: Identity, mode: str, environment: Mapping[str, str]) -> None:
    """Write the identity where logins, Docker and people find it."""
    lines = ["# ktrdr-vm begin", *(f"{name}={_quote(value)}" for name, value in sorted(environment.items())), "# ktrdr-vm end", ""]
    written = guest.run(
        _WRITE,
        stdin="\n".join(lines).encode(),
        environment={
            "IDENTITY": json.dumps({"instance_id": identity.instance_id, "mode": mode}),
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
