"""`places.yaml` is strict, and every error is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError, UsageError
from ktrdr_vm.places.model import find_place, parse_places, read_places

GOOD = """places:
  homelab: {kind: ssh, host: runner@lab1}
  cluster: {kind: slurm, host: me@login1, spool: /shared/ktrdr, cache: /var/tmp/ktrdr, options: [--partition=vm], attempts: 2, grace: 90s}
"""


def test_places_are_read() -> None:
    places = parse_places(GOOD, "places.yaml")
    assert set(places) == {"local", "homelab", "cluster"}
    assert (places["homelab"].host, places["homelab"].program) == ("runner@lab1", "ktrdr-vm")
    assert (places["cluster"].options, places["cluster"].attempts, places["cluster"].grace) == (
        ("--partition=vm",),
        2,
        90,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a: {kind: ssh}", "host is required"),
        ("a: {kind: slurm}", "spool is required"),
        ("a: {kind: local, host: x}", "has no meaning"),
        ("a: {kind: ssh, host: -oProxyCommand=x}", "does not match"),
        ("a: {kind: ssh, host: 'a b'}", "does not match"),
        ("a: {kind: ssh, host: h, program: 'ktrdr-vm; id'}", "does not match"),
        ("a: {kind: slurm, spool: relative}", "does not match"),
        ('a: {kind: slurm, spool: /s, options: ["--x\\n#SBATCH --y"]}', "does not match"),
        ("a: {kind: podman}", "is not one of"),
        ("a: {kind: ssh, host: h, ssh_config: ~nobody-of-this-name/config}", "there is no such home directory"),
        ("a: {kind: local, grace: 1s}", "must be 10s to 1h"),
        ("a: {kind: local, hsot: x}", "unknown"),
        ("local: {kind: ssh, host: x}", "is this host"),
        ("A B: {kind: local}", "does not match"),
    ],
)
def test_errors_are_refused_with_their_place(line: str, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_places(f"places:\n  {line}\n", "places.yaml")
    assert said in str(caught.value)
    assert caught.value.problems[0].line == 2


def test_a_file_that_others_can_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert set(read_places()) == {"local"}
    path = tmp_path / "ktrdr-vm" / "places.yaml"
    path.parent.mkdir()
    path.write_text(GOOD)
    path.chmod(0o644)
    assert find_place("homelab").kind == "ssh"
    with pytest.raises(UsageError, match="no place"):
        find_place("nowhere")
    path.chmod(0o666)
    with pytest.raises(UsageError, match="other users"):
        read_places()
