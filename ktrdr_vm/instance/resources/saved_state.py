"""The saved state of a suspended instance: the complete state of its VM in a file, beside the disk that it belongs to.

The file exists only while the instance is suspended: a state that is older than its disk must never be restored.
"""

from __future__ import annotations

import os

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.durable import sync
from ktrdr_vm.instance.resources.base import Resource


class Saved(Resource):
    kind = "saved"
    survives_suspend = True

    @property
    def name(self) -> str:
        return str(self.target.paths.saved)

    def exists(self) -> bool:
        return self.target.paths.saved.exists()

    def create(self) -> None:
        """Save the running domain, which ends with it. Its disk is synced as well before this returns."""
        path = self.target.paths.saved
        # libvirt writes as QEMU's user into a file that exists; nobody else may read the memory of a VM.
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        try:
            self.target.libvirt.save(self.target.identity.domain, path)
        except KtrdrError:
            path.unlink(missing_ok=True)
            raise
        for file in (path, self.target.paths.overlay, path.parent):
            sync(file)

    def verify(self) -> list[str]:
        try:
            name = self.target.libvirt.read_saved_name(self.target.paths.saved)
        except KtrdrError as error:
            return [error.message]
        return [] if name == self.target.identity.domain else [f"it is the state of {name}"]

    def remove(self) -> None:
        self.target.paths.saved.unlink(missing_ok=True)

    def by_hand(self) -> str:
        return f"rm {self.target.paths.saved}"
