"""A secret in the guest's memory, put there over SSH after boot: never in a seed, a disk, an argument or an environment."""

from __future__ import annotations

import contextlib
import os
import pwd

from ktrdr_vm.egress.control import ask_guard
from ktrdr_vm.egress.deadlines import TAKE
from ktrdr_vm.errors import GuestError, HostError, KtrdrError, ProvisionError, UsageError
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.host import process
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.profile.model import Secret as SecretEntry
from ktrdr_vm.resources.base import Blueprint, Resource, Target

GUEST_LIMIT = 30.0
DIRECTORY = "/run/secrets"
MAX_BYTES = 64 * 1024
COMMAND_LIMIT = 60.0
_CLIENT_VARIABLES = ("HOME", "USER", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "VAULT_ADDR")

# tmpfs of its own, so that no other reader of /run can fill it; the value comes on standard input and touches no argument.
_DELIVER = f"""set -eu
umask 077
mountpoint -q {DIRECTORY} || {{ mkdir -p {DIRECTORY}; mount -t tmpfs -o size=4m,mode=0711,nosuid,nodev,noexec ktrdr-secrets {DIRECTORY}; }}
new="$TARGET.new"
rm -f -- "$new"
cat > "$new"
chown -- "$OWNER" "$new"
chmod -- "$MODE" "$new"
mv -f -- "$new" "$TARGET"
systemctl stop "ktrdr-secret-$NAME.timer" 2>/dev/null || true
systemd-run --quiet --unit="ktrdr-secret-$NAME" --on-active="$TTL" --timer-property=AccuracySec=1s rm -f -- "$TARGET"
"""


# What stands in no profile: secrets that approvals delivered.
_SWEEP = f"""for file in {DIRECTORY}/*; do
  [ -f "$file" ] || continue
  dd if=/dev/zero of="$file" bs="$(stat -c %s -- "$file")" count=1 conv=notrunc status=none
  rm -f -- "$file"
done
"""


class Secret(Resource):
    kind = "secret"

    def __init__(self, target: Target, blueprint: Blueprint | None, entry: SecretEntry | None, name: str) -> None:
        super().__init__(target, blueprint)
        self._entry = entry
        self._secret_name = name

    @property
    def key(self) -> str:
        return f"secret:{self._secret_name}"

    @property
    def name(self) -> str:
        return self._secret_name

    def exists(self) -> bool:
        """It lives in the domain's memory and nowhere else; without the domain there is none."""
        if self._blueprint is None or self._entry is None:
            return False
        facts = self.target.libvirt.find(self.target.identity.domain)
        if facts is None or facts.state != "running":
            return False
        found = self.blueprint.connect().run(["test", "-e", self._entry.path], become=True, timeout=GUEST_LIMIT)
        return found.exit_code == 0

    def create(self) -> None:
        entry = self._entry
        assert entry is not None, "a secret opened for removal cannot be made"
        # The clock first: what is delivered has an end, also when this command is killed in between.
        ask_guard(self.target.paths.guard, "given", name=entry.name, path=entry.path, seconds=entry.ttl)
        delivered = self.blueprint.connect().run(
            _DELIVER,
            stdin=self.blueprint.read_secret(entry),
            environment={
                "TARGET": entry.path,
                "OWNER": self.blueprint.plan.facts.image.user,
                "MODE": f"{entry.mode:04o}",
                "NAME": entry.name,
                "TTL": f"{entry.ttl}s",
            },
            become=True,
            timeout=GUEST_LIMIT,
        )
        if delivered.exit_code != 0:
            raise ProvisionError(
                f"the secret {entry.name} could not be delivered: {delivered.stderr.decode('utf-8', 'replace')[-300:].strip()}",
                where=self.target.identity.instance_id,
                hint="the guest needs tmpfs and systemd; any cloud image of a current distribution has both",
            )

    def verify(self) -> list[str]:
        return [] if self.exists() else ["it is not there; its time to live may have ended"]

    def remove(self) -> None:
        """Removed in the guest while it listens. When it does not, the memory goes with the domain, which is removed next."""
        if self._blueprint is None or self._entry is None:
            return
        facts = self.target.libvirt.find(self.target.identity.domain)
        if facts is None or facts.state != "running":
            return
        try:
            self.blueprint.connect().run(TAKE, environment={"TARGET": self._entry.path, "NAME": self._entry.name}, become=True, timeout=10)
        except GuestError:
            return
        with contextlib.suppress(KtrdrError):
            ask_guard(self.target.paths.guard, "gone", name=self._entry.name, path=self._entry.path)


def sweep_secrets(guest: Guest) -> None:
    """Take out of the guest whatever is left beneath /run/secrets."""
    guest.run(_SWEEP, become=True, timeout=GUEST_LIMIT)


def read_source(entry: SecretEntry) -> bytes:
    """The value from its source on the host, read once, before anything exists."""
    if entry.command:
        return _ask_command(entry)
    if entry.env:
        value = os.environb.get(entry.env.encode())
        if not value:
            raise UsageError(
                f"the variable {entry.env} of the secret {entry.name} is not set",
                where="secrets",
                hint="set it; under sudo, name it with --preserve-env",
            )
        return value
    try:
        descriptor = os.open(entry.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            value = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HostError(
            f"the secret {entry.name} cannot be read: {error.strerror}", where=entry.file, hint="see secrets.files in the owner's policy"
        ) from None
    if not value or len(value) > MAX_BYTES:
        # Half a key would be delivered as if it were one.
        raise HostError(
            f"the secret {entry.name} is {'empty' if not value else f'larger than {MAX_BYTES >> 10} KiB'}",
            where=entry.file,
            hint="a secret is a value, such as a token or a key; larger files come with a mount",
        )
    return value


def _ask_command(entry: SecretEntry) -> bytes:
    """A vault's client or the like, as the person who calls, with what such clients need of the person's environment."""
    user, group = find_owner()
    is_root = os.geteuid() == 0
    environment = {name: os.environ[name] for name in _CLIENT_VARIABLES if name in os.environ}
    if is_root and user != 0:
        environment |= {"HOME": pwd.getpwuid(user).pw_dir, "USER": pwd.getpwuid(user).pw_name}
    done = process.run(
        list(entry.command),
        timeout=COMMAND_LIMIT,
        environment=environment,
        check=False,
        user=user if is_root and user != 0 else None,
        group=group if is_root and user != 0 else None,
    )
    value = done.stdout.rstrip(b"\n")
    if done.exit_code != 0 or not value or len(value) > MAX_BYTES:
        raise HostError(
            f"the command of the secret {entry.name} ended with {done.exit_code} and {len(value)} bytes: {done.error_text[-200:]}",
            where=entry.command[0],
            hint="run it by hand as the same user; it must print the value and nothing else",
        )
    return value
