"""Reads a playbook and what it includes from its folder, without following a link."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.guest.beneath import open_beneath
from ktrdr_vm.profile.strict_yaml import MAX_BYTES


def load_playbook(path: Path, *, source: str = "") -> Playbook:
    """Parse the playbook at `path`. UsageError when it cannot be read, DocumentError with all problems when it is invalid.

    `source` is the name to show; the path as given otherwise. The file itself may be a link that the user made; what it
    includes must be regular files beneath its folder.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the playbook cannot be read: {error}", where=str(path), hint="name a readable YAML file") from None

    def read(name: str) -> str:
        with os.fdopen(open_beneath(path.parent, name), "rb") as stream:
            return stream.read(MAX_BYTES + 1).decode("utf-8")

    return parse_playbook(text, source or str(path), read=read)
