"""A secret in the guest's memory, delivered over SSH after boot: never in a seed, a disk, an argument or an
environment."""

from __future__ import annotations

import time

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.expiry import TAKE
from ktrdr_vm.errors import GuestError, ProvisionError, keep_end
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.instance.resources.base import Blueprint, Resource, Target
from ktrdr_vm.profile.model import Secret as SecretEntry

GUEST_LIMIT = 30.0
# An emulated stock image that shares its CPU still starts its own services then.
DELIVERY_LIMIT = 120.0
# Seconds for a run to load a value that it must mask; it polls every few tenths of a second.
MASKED_LIMIT = 10.0
DIRECTORY = "/run/secrets"

# A tmpfs of its own, so that no other reader of /run can fill it; the value comes on standard input and is in no
# argument.
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


# Secrets that are in no profile: those that approvals delivered.
_SWEEP = f"""status=0
for file in {DIRECTORY}/*; do
  [ -f "$file" ] || continue
  size=$(stat -c %s -- "$file")
  [ "$size" = 0 ] || dd if=/dev/zero of="$file" bs="$size" count=1 conv=notrunc status=none || status=1
  rm -f -- "$file" || status=1
done
exit $status
"""


class Secret(Resource):
    kind = "secret"
    location = "guest"
    needs_guest = True

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

    @property
    def _guard(self) -> GuardClient:
        return GuardClient(self.target.paths.guard)

    def exists(self) -> bool:
        """It is in the memory of the domain and nowhere else; without the domain there is none."""
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
        # The expiry first: a delivered secret expires also if this command is killed in between.
        value = self.blueprint.read_secret(entry)
        self._guard.expire_secret(entry.name, entry.path, entry.ttl)
        self._announce(value)
        delivered = self.blueprint.connect().run(
            _DELIVER,
            stdin=value,
            environment={
                "TARGET": entry.path,
                "OWNER": self.blueprint.plan.facts.image.user,
                "MODE": f"{entry.mode:04o}",
                "NAME": entry.name,
                "TTL": f"{entry.ttl}s",
            },
            become=True,
            timeout=DELIVERY_LIMIT,
        )
        if delivered.exit_code != 0:
            raise ProvisionError(
                f"the secret {entry.name} could not be delivered:"
                f" {keep_end(delivered.stderr.decode('utf-8', 'replace').strip(), 300)}",
                where=self.target.identity.instance_id,
                hint="the guest needs tmpfs and systemd; any cloud image of a current distribution has both",
            )

    def _announce(self, value: bytes) -> None:
        """Send the value to the guard, and wait until every run of the instance masks it. Only then may it enter the
        guest."""
        self._guard.add_value(self.name, value)
        end = time.monotonic() + MASKED_LIMIT
        while self._guard.count_unread():
            if time.monotonic() > end:
                raise ProvisionError(
                    f"a run of this instance does not mask the secret {self.name} yet, so it was not delivered",
                    where=self.target.identity.instance_id,
                    hint="check whether the run hangs, end it, and try again",
                )
            time.sleep(0.05)

    def verify(self) -> list[str]:
        return [] if self.exists() else ["it is not there; its time to live may have ended"]

    def remove(self) -> None:
        """Remove it from the guest, and check that it is gone. No effect when the VM, whose memory it is in, has ended.

        ProvisionError when the guest is paused, does not answer, or keeps it; its expiry then stays.
        """
        if self._blueprint is None or self._entry is None:
            return
        facts = self.target.libvirt.find(self.target.identity.domain)
        if facts is None or not facts.state.is_alive:
            return
        if facts.state != "running":
            raise self._still_there(f"the VM is {facts.state}")
        try:
            done = self.blueprint.connect().run(
                TAKE,
                environment={"TARGET": self._entry.path, "NAME": self._entry.name},
                become=True,
                timeout=GUEST_LIMIT,
            )
        except GuestError as error:
            raise self._still_there(f"the guest does not answer: {error.message}") from None
        if done.exit_code != 0 or self.exists():
            raise self._still_there(
                keep_end(done.stderr.decode("utf-8", "replace").strip(), 200) or "the guest keeps it"
            )
        self._guard.cancel_expiry(self._entry.name, self._entry.path)

    def _still_there(self, why: str) -> ProvisionError:
        return ProvisionError(
            f"the secret {self.name} may still be in the guest: {why}",
            where=self.target.identity.instance_id,
            hint="its expiry stays; invalidate it at its source, or `ktrdr-vm destroy` the instance",
        )


def sweep_secrets(guest: Guest) -> None:
    """Remove every file beneath /run/secrets in the guest. ProvisionError when one remains."""
    done = guest.run(_SWEEP, become=True, timeout=GUEST_LIMIT)
    if done.exit_code != 0:
        raise ProvisionError(
            f"{DIRECTORY} of the guest could not be emptied: {keep_end(done.stderr.decode('utf-8', 'replace').strip(), 200)}",
            where=DIRECTORY,
            hint="remove its files in the guest, then try again",
        )
