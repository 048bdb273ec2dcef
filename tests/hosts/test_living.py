"""An instance that stays, under KVM and AppArmor: mounts, suspend and resume, loans, a snapshot, libvirtd restarted,
the host rebooted."""

from __future__ import annotations

import time

from box.household import POLICY, Household
from box.machine import Box

COUNT = (
    'systemd-run --quiet --unit=counter sh -c "n=0; while :; do n=\\$((n+1)); echo \\$n > /run/count; sleep 1; done"'
)
# The second runs the scripts of the package as an upgrade does: the profiles of AppArmor are loaded again as well.
AGAIN = {
    "libvirtd restarted": "systemctl restart libvirtd",
    "libvirt configured as by an upgrade": "dpkg-reconfigure -f noninteractive libvirt-daemon-system libvirt-daemon",
}
MEMORY = 'awk "/MemTotal/ {print int(\\$2 / 1024)}" /proc/meminfo'


def test_an_instance_lives_on_such_a_host(box: Box) -> None:
    home = Household(box)
    home.prepare()
    box.run("mkdir -p /etc/ktrdr-vm && cat > /etc/ktrdr-vm/policy.yaml", stdin=POLICY.encode()).require()
    home.ktrdr("apply living.yaml --instance-id mine", step="apply with a mount, and its template").require()
    assert home.guest("mine", "cat /data/input.txt") == "from the host"
    _rests(home)
    assert home.guest("mine", "cat /data/input.txt") == "from the host"
    _borrows(home)
    _is_copied(home)
    for step, line in AGAIN.items():
        box.run(line, limit=300, step=step).require()
        assert home.ktrdr("status mine").require().out
        assert home.guest("mine", "cat /data/input.txt") == "from the host"
    _outlives_the_host(home)


def test_a_fork_that_maps_its_template_rests(box: Box) -> None:
    """It opens the memory of its template again when it comes back."""
    home = Household(box)
    home.prepare()
    home.ktrdr("apply resting.yaml --instance-id mine", step="apply, a fork").require()
    _rests(home)
    # QEMU 8.2 and later can map it privately without the right to write to it.
    writes = "setpriv --reuid libvirt-qemu --regid kvm --init-groups test -w /var/lib/ktrdr-vm/templates/*/memory"
    reads = writes.replace("-w", "-r")
    assert box.run(reads).code == 0
    assert box.run(writes).code == (0 if box.release.codename == "bookworm" else 1)
    assert "residue: none" in home.ktrdr("destroy mine --yes").require().out
    assert "libvirt-" not in box.run("ls /etc/apparmor.d/libvirt").require().out


def _rests(home: Household) -> None:
    home.guest("mine", COUNT)
    boot = home.guest("mine", "cat /proc/sys/kernel/random/boot_id")
    time.sleep(5)
    before = int(home.guest("mine", "cat /run/count"))
    home.ktrdr("suspend mine", step="suspend").require()
    assert "suspended" in home.ktrdr("list").require().out
    home.ktrdr("resume mine", step="resume").require()
    assert home.guest("mine", "cat /proc/sys/kernel/random/boot_id") == boot
    assert int(home.guest("mine", "cat /run/count")) >= before > 0
    there, here = float(home.guest("mine", "date +%s")), float(home.box.run("date +%s").require().out)
    assert abs(here - there) < 60, "its clock is the host's"
    assert home.ktrdr("status mine").code == 0


def _borrows(home: Household) -> None:
    """A folder, memory and a processor, each given and taken back."""
    before = int(home.guest("mine", MEMORY))
    lent = {what: home.asks("mine", what) for what in ("mount ./more /more", "resources --memory 1280 --vcpus 2")}
    for what, one in lent.items():
        home.ktrdr(f"escalations approve mine {one} --reason test --seconds 3600", step=f"lend {what}").require()
    assert home.guest("mine", "cat /more/x") == "lent"
    assert home.guest("mine", "nproc") == "2"
    _wait(lambda: int(home.guest("mine", MEMORY)) == before + 256, "the memory is there")
    for one in lent.values():
        home.ktrdr(f"escalations revoke mine {one} --reason over").require()
    assert home.guest("mine", "nproc") == "1" and home.guest("mine", "ls -A /more") == ""
    _wait(lambda: int(home.guest("mine", MEMORY)) == before, "the memory is given back")


def _is_copied(home: Household) -> None:
    home.guest("mine", "echo kept > /root/file; sync")
    home.ktrdr("snapshot mine here", step="snapshot").require()
    machine_id = home.guest("mine", "cat /etc/machine-id")
    # One emulated processor is not enough for a cold boot in the usual time beside another VM.
    home.ktrdr("suspend mine", step="suspend").require()
    home.ktrdr("apply living.yaml --instance-id copy --from mine@here", step="apply from the snapshot").require()
    assert home.guest("copy", "cat /root/file") == "kept"
    assert home.guest("copy", "cat /etc/machine-id") != machine_id
    assert "residue: none" in home.ktrdr("destroy copy --yes").require().out
    home.ktrdr("resume mine", step="resume").require()


def _outlives_the_host(home: Household) -> None:
    """The machine is gone with the host's power and its disk is not; what has a time to live keeps it."""
    home.box.reboot()
    assert home.ktrdr("list").require().out
    home.ktrdr("apply living.yaml --instance-id mine", step="apply after the host's reboot").require()
    assert home.guest("mine", "cat /root/file") == "kept"
    assert home.guest("mine", "cat /data/input.txt") == "from the host"
    _set_clock(home)
    assert home.ktrdr("gc", step="gc after the clock was set").code == 0
    assert "mine" in home.ktrdr("list").require().out, "a clock that is set is no time that has passed"
    home.box.reboot()
    _set_clock(home)
    said = home.ktrdr("gc", step="gc after its time to live").require()
    assert "mine" not in home.ktrdr("list").require().out, said.out + said.err
    assert home.box.run("virsh -q list --all --name; ls /var/lib/ktrdr-vm/instances").require().out.split() == []


def _set_clock(home: Household) -> None:
    """Later than its time to live. The hardware clock of the box is left, so this does not outlast a reboot."""
    home.box.run("timedatectl set-ntp false; date -s +7hours").require()


def _wait(condition: object, what: str) -> None:
    end = time.monotonic() + 180
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(2)
