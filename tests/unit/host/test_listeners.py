"""The sockets that wait for datagrams, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

from ktrdr_vm.host.listeners import find_bound

SOCKETS = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 0100D57F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
  200: 0200D57F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
  300: 0300D57F:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
"""


def test_addresses_of_a_port(tmp_path: Path) -> None:
    (tmp_path / "udp").write_text(SOCKETS)
    assert find_bound(53, tmp_path / "udp") == {"127.213.0.1", "127.213.0.2"}
    assert find_bound(53, tmp_path / "none") == set()
