"""The disk that an instance uses on the host."""

from __future__ import annotations

import contextlib
import os
import stat

from ktrdr_vm.host.paths import InstancePaths


def measure_disk(paths: InstancePaths) -> int:
    """Bytes of the files of an instance. Folders that it mounts are not part of it and are not entered: they can have
    any number of files. Files that are removed meanwhile are omitted."""
    total = 0
    # A VM whose template was being built may have no folder.
    with contextlib.suppress(FileNotFoundError):
        for folder, folders, files, descriptor in os.fwalk(paths.directory, follow_symlinks=False):
            if folder == str(paths.directory):
                folders[:] = [name for name in folders if name != paths.mounts.name]
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    total += facts.st_blocks * 512 if stat.S_ISREG(facts.st_mode) else 0
    return total
