"""`make run` by a person without root, from a clone in a home of mode 0700, with KVM through its group, beside root's
own state."""

from __future__ import annotations

import json

from box.machine import LIMIT, Box, Said
from box.root import CLONE, PERSON

HOME = f"/home/{PERSON}"
STATE = f"{HOME}/.local/state/ktrdr-vm"
# The environment of the box is in root's home, which nobody else may enter; without a way to a mirror it is copied.
_GIVE = f"""set -e
mkdir -p {HOME}/.ssh {STATE}/images
cp /root/.ssh/authorized_keys {HOME}/.ssh/
cp -r {CLONE} {HOME}/ktrdr-vm
grep -rlI {CLONE} {HOME}/ktrdr-vm/.venv | xargs sed -i 's#{CLONE}#{HOME}/ktrdr-vm#g'
cp -r --sparse=always /var/lib/ktrdr-vm/images/* {STATE}/images/
chmod 711 {STATE} {STATE}/images
chown -R {PERSON}: {HOME}
chmod 700 {HOME} {HOME}/.ssh
loginctl enable-linger {PERSON}
"""


# The limits of CPU time that are in force beneath the scope of a world, while there are VMs.
_WATCH = """nohup sh -c 'for i in $(seq 1800); do
    find /sys/fs/cgroup/user.slice -path "*/ktrdr-vm-world-*.scope/machine*/cpu.max" -exec cat {} + 2>/dev/null | grep -v max
    sleep 1
done' > /root/limits 2>/dev/null < /dev/null &"""


def test_a_person_without_root_runs_the_main_job(box: Box) -> None:
    box.run(f"cd {CLONE} && SUDO_USER={PERSON} scripts/setup", limit=600, step="setup, for the person too").require()
    box.run(_GIVE, limit=300).require()
    box.run(_WATCH).require()
    said = _as_person(box, "cd ktrdr-vm && make run", limit=LIMIT, step="make run, with the template")
    assert said.code == 0, said.out[-4000:] + said.err[-6000:]
    # Two vCPUs, and one CPU more for other threads of QEMU, in microseconds.
    assert "300000 100000" in box.run("sort /root/limits | uniq -c").require().out
    report = json.loads(_as_person(box, f"cat {STATE}/runs/demo/latest/report.json").require().out)
    assert {gate["name"]: gate["outcome"] for gate in report["gates"]} == {
        "startability": "passed",
        "isolation": "passed",
    }
    assert report["host"]["accelerator"] == "kvm" and report["residue"] == []
    assert (
        box.run("virsh -q list --all --name; ip netns list | grep ktrdr; ls /var/lib/ktrdr-vm/instances")
        .require()
        .out.strip()
        == ""
    )
    checks = [
        line.split()
        for line in _as_person(box, "ktrdr-vm/.venv/bin/ktrdr-vm doctor").require().out.splitlines()
        if line.strip()
    ]
    assert {words[1] for words in checks if words[0] == "warning"} <= {"memory"}
    # Nobody needs the world any more. libvirtd takes seconds to end.
    _as_person(box, f"echo 0 > {STATE}/world/idle-limit")
    left = f"pgrep -u {PERSON} -a 'libvirtd|virtlogd|pasta|passt'"
    assert (
        box.run(f"for i in $(seq 60); do {left} > /dev/null || break; sleep 1; done; {left} || true").out.strip() == ""
    )
    assert box.run("find /sys/fs/cgroup/user.slice -name 'ktrdr-vm-world-*'").require().out == ""


def _as_person(box: Box, script: str, *, limit: float = 300, step: str = "") -> Said:
    """Over SSH, as logind knows it: with a session and a runtime directory."""
    return box.run(script, limit=limit, step=step, user=PERSON)
