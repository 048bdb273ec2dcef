"""An interactive instance follows its profile: live, by a restart, or with the reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, run
from laboratory.lab import Lab

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("image")]

PROFILE = """\
version: 1
name: lived-in
mode: interactive
image: debian-13-docker
resources: {{vcpus: 1, memory: {memory}, disk: {disk}}}
egress: {{allow: [{{host: {host}, ports: [80]}}]}}
environment: {{LEVEL: {level}}}
"""


def write(
    place: Path, *, memory: str = "1GiB", disk: str = "10GiB", host: str = "allowed.test.lab", level: str = "one"
) -> None:
    (place / "profile.yaml").write_text(PROFILE.format(memory=memory, disk=disk, host=host, level=level))


def test_it_follows_its_profile(lab: Lab, tmp_path: Path) -> None:
    instance_id = lab.new_id("lived-in")
    write(tmp_path)
    words = ("apply", "profile.yaml", "--instance-id", instance_id)

    def apply(*more: str) -> tuple[int, str]:
        ended = run(lab, *words, *more, cwd=tmp_path, limit=1200)
        return ended.code, ended.stderr

    def shell(line: str) -> str:
        return run(lab, "exec", instance_id, "--", "sh", "-lc", line).stdout.strip()

    try:
        assert apply()[0] == 0
        assert shell("echo kept > ~/mine; echo $LEVEL") == "one"
        write(tmp_path, level="two", host="evil.test.lab")
        shown = run(lab, "plan", "profile.yaml", "--instance-id", instance_id, cwd=tmp_path).stdout
        assert '-    "allowed.test.lab:80"' in shown and '+    "evil.test.lab:80"' in shown
        code, said = apply()
        assert code == 0 and "changes (live) egress: allowed.test.lab:80 → evil.test.lab:80" in said, said
        assert (
            shell("echo $LEVEL; curl -sS -o /dev/null -w '%{http_code}' --max-time 30 http://evil.test.lab/")
            == "two\n200"
        )
        assert shell("curl -sS -o /dev/null --max-time 30 http://allowed.test.lab/ || echo closed") == "closed"

        write(tmp_path, level="two", host="evil.test.lab", memory="1536MiB")
        code, said = apply()
        assert code == 2 and "require a restart" in said and "memory: 1024 → 1536" in said, said
        boot = shell("cat /proc/sys/kernel/random/boot_id")
        code, said = apply("--restart")
        assert code == 0, said
        assert shell("cat ~/mine") == "kept" and shell("cat /proc/sys/kernel/random/boot_id") != boot
        assert int(shell("awk '/MemTotal/ {print $2}' /proc/meminfo")) > 1_300_000

        write(tmp_path, level="two", host="evil.test.lab", memory="1536MiB", disk="20GiB")
        code, said = apply("--restart")
        assert code == 2 and "cannot be applied" in said, said
    finally:
        assert run(lab, "destroy", instance_id, "--yes").code == 0
    assert_nothing_left(lab, instance_id)
