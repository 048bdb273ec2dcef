"""The pages of testing, hosts and agents say what the Makefile, its scripts and the shipped profiles do."""

from __future__ import annotations

import re
import sys

import pytest

from ktrdr_vm.host import accelerator, capacity
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.identity import HOST_USERS
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.instance.instance import BOOT_LIMIT
from ktrdr_vm.world import root

sys.path.insert(0, str(PROJECT / "tests/unit/fuzz"))

RULES = dict(re.findall(r"^([a-z-]+): ([a-z]*) ?##", (PROJECT / "Makefile").read_text(), re.MULTILINE))
RULES |= dict.fromkeys(re.findall(r"^([a-z-]+): ##", (PROJECT / "Makefile").read_text(), re.MULTILINE), "")
RECIPES = dict(
    re.findall(r"^([a-z-]+):[^\n]*##[^\n]*\n((?:\t[^\n]*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)
)


def read(path: str) -> str:
    return (PROJECT / path).read_text(encoding="utf-8")


def page(path: str) -> str:
    return " ".join(read(path).split())


def test_a_tier_without_root_prepares_nothing_of_the_host() -> None:
    assert {RULES[name] for name in ("lint", "unit", "docs", "golden")} == {"environment"} and RULES["dev"] == ""
    assert "scripts/setup" not in read("scripts/dev") and "apt-get" not in read("scripts/dev")
    assert "apt-get" not in read("scripts/environment")
    for tier in ("lint", "types", "unit docs golden"):
        assert tier in read("scripts/dev")


def test_everything_else_prepares_the_host_first() -> None:
    for name in ("run", "lab", "soak", "pictures", "host"):
        assert RULES[name] == "setup"
    for name in ("test", "fuzz", "agreement", "crash"):
        assert "\nscripts/setup" in read(f"scripts/{name}")


def test_the_tests_are_root_s_and_a_person_is_told_before_anything_is_installed() -> None:
    """Without root, the packages of the tests were asked of apt, which refused, and each tier of the lab then ended
    without a test."""
    script = read("scripts/test")
    assert 0 < script.index('if [ "$(id -u)" -ne 0 ]') < script.index("scripts/setup ||")


def test_every_tier_is_part_of_make_test_and_the_hosts_are_not() -> None:
    script = read("scripts/test")
    assert "tier lint" in script and "for one in unit docs golden; do" in script
    assert "suite lab lab ' and not vm'" in script and "suite vms lab ' and vm'" in script
    assert "tier world .venv/bin/python tests/lab" in script and "--durations=15" in script
    assert "tests/hosts" not in script and "set -e" not in script
    assert '[ "$(nproc)" -gt 1 ] || wait "$apart"' in script
    assert "usual='not full'" in script and "-m 'not full'" in RECIPES["lab"]


def test_the_targets_start_what_the_page_says() -> None:
    assert "${KTRDR_VM_SOAK:-100}" in RECIPES["soak"].replace("$$", "$")
    assert "tests/lab/test_crash.py tests/lab/test_world_crash.py" in read("scripts/crash")
    assert "KTRDR_VM_HOSTS_REPORT=docs/hosts.json" in RECIPES["test-hosts"]
    assert "scripts/render-hosts" in RECIPES["test-hosts"] and "$(RELEASE)" in RECIPES["host"]
    assert "profiles/startability.yaml --instance-id demo" in RECIPES["run"]
    assert len(read_profile(PROJECT / "profiles/startability.yaml", PROJECT).profile.gates) == 2


def test_fuzzing_takes_half_an_hour_in_all() -> None:
    import targets

    seconds = int(re.findall(r"seconds=\$\{1:-(\d+)\}", read("scripts/fuzz"))[0])
    assert 25 * 60 <= seconds * len(targets.TARGETS) <= 35 * 60


@pytest.mark.parametrize("script", sorted(path.name for path in (PROJECT / "scripts").iterdir() if path.is_file()))
def test_pip_installs_the_versions_of_the_constraints(script: str) -> None:
    for line in read(f"scripts/{script}").splitlines():
        if "pip install" in line and not line.lstrip().startswith(("#", "say ")):
            assert "--constraint constraints.txt" in line, line


def test_a_release_is_checked_and_uploaded_nowhere() -> None:
    script = read("scripts/release")
    assert "twine check --strict" in script and "scripts/deb" in script and "sha256sum" in script
    assert 'gpg --batch --yes --armor --local-user "$KTRDR_VM_SIGNING_KEY"' in script and "--snapshot" in script
    assert not re.search(r"twine upload|git (push|tag)\b(?! -s v0)|curl ", script)
    assert "command -v lintian" in read("scripts/deb") and "apt-get build-dep" in read("scripts/deb")


def test_what_setup_does_to_a_host() -> None:
    script = read("scripts/setup")
    assert "cat ktrdr_vm/host/packages.txt scripts/packages.txt" in script
    # Only as the kernel makes it: any other owner, group or mode is somebody's decision.
    assert '[ "$(stat -c %U:%G:%a /dev/kvm)" = root:root:600 ]' in script and "chmod 660 /dev/kvm" in script
    assert "virtlogd -d" in script and "libvirtd -d" in script and "systemctl enable --now" in script
    [line] = re.findall(r"echo '(  signal [^']+)' >> /etc/apparmor.d/local/usr.sbin.libvirtd", script)
    assert f"```text\n{line}\n```" in read("docs/hosts.md")
    assert '--groups "$(stat -c %G /dev/kvm)"' in script and "--add-subuids" in script


def test_the_numbers_of_the_page_of_hosts() -> None:
    said = page("docs/hosts.md")
    assert f"{capacity.OVERHEAD} MiB of overhead, and {capacity.MEMORY_FLOOR} MiB for the host" in said
    assert f"Disk: {capacity.DISK_FLOOR >> 10} GiB must be free" in said
    assert f"run within {accelerator.SECTOR_LIMIT:g} seconds" in said and accelerator._PATIENCE == 3
    assert f"must boot within {accelerator.KERNEL_LIMIT:g} seconds" in said and str(accelerator.CACHE) in said
    assert f"a limit of {BOOT_LIMIT['tcg']:g} instead of {BOOT_LIMIT['kvm']:g} seconds" in said
    assert root.IDLE_LIMIT == 600 and "ends after ten minutes without instances" in said
    assert f"({HOST_USERS.first} and above)" in said
    project = read("pyproject.toml")
    assert 'requires-python = ">=3.11"' in project and "Python 3.11 or later" in said
    assert '"-smp", "1"' in read("tests/hosts/box/machine.py") and "have one processor" in said
    assert '"KTRDR_VM_HOSTS_HOME") or "/var/lib/ktrdr-vm-hosts"' in read("tests/hosts/box/release.py")


def test_the_page_of_agents_names_what_their_profiles_have() -> None:
    rows = [line for line in read("docs/coding-agents.md").splitlines() if line.startswith("|") and "brokered" in line]
    assert len(rows) == 3
    for row in rows:
        name = row.split("|")[2].strip(" `")
        profile = read_profile(PROJECT / f"profiles/agents/{name}.yaml", PROJECT).profile
        [secret] = profile.secrets
        assert secret.broker is not None and f"`{secret.env}`" in row
        for method, path in re.findall(r"`([A-Z]+) (/\S+)`", row):
            assert method in secret.broker.methods and path.startswith(secret.broker.paths)
        if "`artifacts/…/projects" in row or "`artifacts/…/sessions" in row:
            assert str(profile.artifacts[0]).rpartition("/")[2] in row
        assert profile.workload is not None and (name == "generic" or "< TASK.md" in profile.workload.command[-1])


def test_only_variables_of_claude_code_turn_off_its_telemetry() -> None:
    text = read("profiles/agents/claude-code.yaml")
    assert 'CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1"' in text and 'DISABLE_AUTOUPDATER: "1"' in text
    assert "ANTHROPIC_BASE_URL" in text and "--dangerously-skip-permissions" in text
    assert "--dangerously-bypass-approvals-and-sandbox" in read("profiles/agents/codex.yaml")


def test_the_package_starts_no_service_and_leaves_apparmor_alone() -> None:
    names = {path.name for path in (PROJECT / "debian").rglob("*")}
    assert not [name for name in names if name.endswith((".service", ".socket", ".timer", "postinst", "preinst"))]
    assert "apparmor" not in read("debian/rules")


def test_the_extras_install_what_is_imported() -> None:
    extras = read("pyproject.toml").partition("[project.optional-dependencies]")[2]
    for name, package in (("mcp", "mcp"), ("telemetry", "opentelemetry-proto"), ("top", "textual")):
        assert re.search(rf'^{name} = \["{package}[>\]"]', extras, re.MULTILINE)


def test_setup_tells_a_person_what_is_missing() -> None:
    """Without root it changes nothing of the host: it names the packages, else what `doctor` finds."""
    part = read("scripts/setup").partition('if [ "$(id -u)" -ne 0 ]; then')[2].partition("\nfi\n")[0]
    assert "as root, once: apt-get install" in part and ".venv/bin/ktrdr-vm doctor" in part and "exit 0" in part
