"""What a test file needs of its host, as marks."""

from __future__ import annotations

from pathlib import Path

import pytest

# sshd starts only where its folder, its users and its root are those of the host.
SSHD = [
    pytest.mark.host_root,
    pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="openssh-server is not installed"),
]
