"""Settings of the host's package clients and its own authorities, written into the guest."""

from __future__ import annotations

import io

from ktrdr_vm.errors import GuestError, keep_end
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.plan.facts import AUTHORITIES, BUNDLE, OWN_AUTHORITIES
from ktrdr_vm.plan.plan import Plan

# `update-ca-certificates` takes half a minute under emulation, and would add the same text to the same file. It finds
# the certificates in their folder when something else starts it. Docker reads the file at its first connection. Not
# every release of the distributions with `update-ca-trust` has the bundle under the name of Debian.
_WRITE = f"""set -eu
umask 022
rm -f {AUTHORITIES}*.crt
tar --extract --no-same-owner --directory / --file -
if [ -e /etc/ktrdr/debian.sources ] && . /etc/os-release && [ "$ID" = debian ]; then
  sed "s/@RELEASE@/$VERSION_CODENAME/g" /etc/ktrdr/debian.sources > /etc/apt/sources.list.d/debian.sources
  rm -f /etc/apt/sources.list
fi
[ -n "$AUTHORITIES" ] || exit 0
mkdir -p /etc/ktrdr
cat {AUTHORITIES}*.crt > {OWN_AUTHORITIES}
bundle={BUNDLE}
mkdir -p "${{bundle%/*}}"
if command -v update-ca-trust >/dev/null; then
  cp {AUTHORITIES}*.crt /etc/pki/ca-trust/source/anchors/
  update-ca-trust
  [ -e "$bundle" ] || ln -sf /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem "$bundle"
else
  [ ! -e "$bundle" ] || sed -i '/^# ktrdr-vm begin$/,/^# ktrdr-vm end$/d' "$bundle"
  {{ echo '# ktrdr-vm begin'; cat {AUTHORITIES}*.crt; echo '# ktrdr-vm end'; }} >> "$bundle"
fi
"""
_LIMIT = 600.0


def configure_clients(guest: Guest, plan: Plan) -> None:
    """Write the files of the plan. Nothing is asked of the guest if there are none."""
    files = plan.facts.client_files
    if not files:
        return
    # Imported late, as few commands write into a guest.
    import tarfile

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in files:
            content = one.text.encode()
            entry = tarfile.TarInfo(one.path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    own = [one.path for one in files if one.path.startswith(AUTHORITIES)]
    written = guest.run(
        _WRITE, stdin=sink.getvalue(), environment={"AUTHORITIES": " ".join(own)}, become=True, timeout=_LIMIT
    )
    if written.exit_code != 0:
        raise GuestError(
            "the settings of the package clients could not be written:"
            f" {keep_end(written.stderr.decode('utf-8', 'replace').strip(), 300)}",
            where=plan.identity.instance_id,
            hint=(
                "the image requires a user with sudo, and tar; without a preset and without own authorities nothing is"
                " written"
            ),
        )
