"""The identity of the instance in the guest, written after the first SSH login, for a cold boot and a fork alike."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from ktrdr_vm.errors import GuestError, keep_end
from ktrdr_vm.guest.clients import configure_clients
from ktrdr_vm.guest.guide import make_facts, render_guide
from ktrdr_vm.guest.protocol import ENVIRONMENT_FILE, Guest
from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.plan import Plan

# Ten emulated guests share two cores.
GUEST_LIMIT = 600.0
_DATA = Path(__file__).parent / "data"

# Exit codes of the script: Docker failed; there is no python3 for its configuration.
_NO_DOCKER, _NO_PYTHON = 81, 82

# Under emulation every program that a script starts costs tens of milliseconds, so the script uses builtins of the
# shell. A running Docker reads new labels on SIGHUP without an effect on containers; a guest may lack Docker.
_WRITE = """set -eu
umask 022
mkdir -p /etc/ktrdr /etc/ssh /usr/local/bin
printf '%s\\n' "$IDENTITY" > /etc/ktrdr/identity.json
printf '%s' "$GUIDE" > /etc/ktrdr/README.md
printf '%s' "$KNOWN_HOSTS" > /etc/ssh/ssh_known_hosts
printf '%s' "$ESCALATE" > /usr/local/bin/ktrdr-escalate
chmod 0755 /usr/local/bin/ktrdr-escalate
newline='
'
slurp() {
  content=
  [ -e "$1" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do
    content=$content$line$newline
  done < "$1"
}
slurp /etc/environment
case $content in
*"# ktrdr-vm begin$newline"*"# ktrdr-vm end$newline"*)
  content=${content%%"# ktrdr-vm begin$newline"*}${content#*"# ktrdr-vm end$newline"} ;;
esac
printf '%s%s' "$content" "$ENVIRONMENT" > /etc/environment
printf '%s' "$EXPORTS" > __F__
mkdir -p /etc/profile.d
echo '[ ! -r __F__ ] || . __F__' > /etc/profile.d/ktrdr.sh
command -v dockerd >/dev/null || exit 0
slurp /etc/docker/daemon.json
case $content in
*'"ktrdr.instance_id='*)
  rest=${content#*'"ktrdr.instance_id='}
  printf '%s' "${content%%'"ktrdr.instance_id='*}\\"$LABEL\\"${rest#*'"'}" > /etc/docker/daemon.json ;;
*)
  ! command -v python3 >/dev/null || python3 - "$LABEL" <<'PY'
import json, os, sys
path = "/etc/docker/daemon.json"
try:
    with open(path) as file: content = json.load(file)
except FileNotFoundError:
    content = {}
content["labels"] = [*content.get("labels", []), sys.argv[1]]
os.makedirs("/etc/docker", exist_ok=True)
with open(path, "w") as file: json.dump(content, file)
PY
  ;;
esac
if [ -n "$MIRRORS" ] || [ -e /etc/ktrdr/docker-mirrors ]; then
  command -v python3 >/dev/null || exit 82
  python3 - "$MIRRORS" <<'PY'
import json, os, sys
path, kept = "/etc/docker/daemon.json", "/etc/ktrdr/docker-mirrors"
with open(path) as file: content = json.load(file)
earlier = open(kept).read().split() if os.path.exists(kept) else []
content["registry-mirrors"] = sys.argv[1].split() + [one for one in content.get("registry-mirrors", []) if one not in earlier]
with open(path, "w") as file: json.dump(content, file)
with open(kept, "w") as file: file.write(sys.argv[1])
PY
fi
# `systemctl start` returns when it is ready.
systemctl start docker.service || exit 81
[ ! -s /run/docker.pid ] || {
  read -r pid < /run/docker.pid || [ -n "$pid" ]
  kill -HUP "$pid"
}
""".replace("__F__", ENVIRONMENT_FILE)


def make_environment(identity: Identity, mode: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process in the instance. A profile cannot override the identity."""
    instance_id = identity.instance_id
    attributes = f"service.namespace={instance_id},ktrdr.instance_id={instance_id},ktrdr.environment={mode}"
    return {
        **extra,
        "KTRDR_INSTANCE_ID": instance_id,
        "COMPOSE_PROJECT_NAME": instance_id,
        "OTEL_RESOURCE_ATTRIBUTES": attributes,
    }


def personalize(guest: Guest, plan: Plan, environment: Mapping[str, str]) -> None:
    """Write identity, limits and environment for logins, Docker, programs and people, and start Docker."""
    configure_clients(guest, plan)
    identity, mirrors = plan.identity, [broker for _, broker in plan.profile.brokered if broker.docker_mirror]
    lines = [
        "# ktrdr-vm begin",
        *(f"{name}={quote_for_pam(value)}" for name, value in sorted(environment.items())),
        "# ktrdr-vm end",
        "",
    ]
    written = guest.run(
        _WRITE,
        environment={
            "ENVIRONMENT": "\n".join(lines),
            "EXPORTS": render_exports(environment),
            "IDENTITY": json.dumps(make_facts(plan), indent=2),
            "GUIDE": render_guide(plan),
            "KNOWN_HOSTS": (_DATA / "known_hosts").read_text(encoding="utf-8"),
            "ESCALATE": (_DATA / "ktrdr-escalate").read_text(encoding="utf-8"),
            "LABEL": f"ktrdr.instance_id={identity.instance_id}",
            "MIRRORS": " ".join(
                environment[broker.base_url_env] for broker in mirrors if broker.base_url_env in environment
            ),
        },
        become=True,
        timeout=GUEST_LIMIT,
    )
    if written.exit_code == _NO_DOCKER:
        raise GuestError(
            f"Docker does not start in the guest: {_end(written.stderr)}",
            where=identity.instance_id,
            hint="keep the instance with `--keep always`, and check `journalctl -u docker` in it",
        )
    if written.exit_code == _NO_PYTHON:
        raise GuestError(
            "the registry mirrors of Docker require python3 in the guest, which has none in its PATH",
            where=identity.instance_id,
            hint="use an image that has python3, or remove `docker_mirror` from the secrets of the profile",
        )
    if written.exit_code != 0:
        raise GuestError(
            f"the identity could not be written: {_end(written.stderr)}",
            where=identity.instance_id,
            hint="the image requires a user with sudo, and sh",
        )


def _end(output: bytes) -> str:
    return keep_end(output.decode("utf-8", "replace").strip(), 300)


def render_exports(environment: Mapping[str, str]) -> str:
    """The variables for a shell. `exec`, `ssh` and login shells read them, because /etc/environment cannot contain
    every value."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))


def quote_for_pam(value: str) -> str:
    """A value for /etc/environment, for programs that read nothing else.

    pam_env ends it at a `#` and a line break. If it begins with a quote, all quotes are removed, else none is.
    """
    line = value.replace("\n", " ")
    return (
        line if "'" in line and line[0] not in "'\"" and line == line.strip() else shlex.quote(line) if line else '""'
    )
