"""`apt` and `package`: packages of a guest with apt, with the package manager of the guest."""

from __future__ import annotations

import fnmatch
import re

from ktrdr_vm.errors import keep_end
from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result, text_of

_KEPT = 64 * 1024
_SECONDS = re.compile("[0-9]{1,15}")
_STAMPS = ("/var/lib/apt/periodic/update-success-stamp", "/var/lib/apt/lists")
_UNCHANGED = re.compile(
    r"^0 upgraded, 0 newly installed, (?:0 reinstalled, )?(?:0 downgraded, )?0 to remove", re.MULTILINE
)


def run_package(call: Call) -> Result:
    """`package` is `apt` with fewer options, because a guest is a Debian."""
    return run_apt(call)


def run_apt(call: Call) -> Result:
    if call.run(["sh", "-c", "command -v apt-get"]).exit_code != 0:
        raise ModuleFailure(
            "this module requires apt in the guest, and there is no apt-get; use a command of the guest's package"
            " manager"
        )
    result: Result = {"changed": False, "cache_updated": False}
    names = [call.get("deb")] if call.get("deb") else [str(name) for name in call.get("name", [])]
    state = str(call.get("state", "present"))
    _update_lists(call, bool(names), result)
    upgrade = str(call.get("upgrade", "no"))
    if upgrade != "no":
        verb = ["dist-upgrade"] if upgrade in ("dist", "full") else ["upgrade", "--with-new-pkgs"]
        _change(call, [*_settings(call), *verb], result)
    if names and state == "absent":
        _remove(call, names, result)
    elif names:
        _install(call, names, state, result)
    elif call.get("autoremove", False):
        _change(call, [*(["--purge"] if call.get("purge", False) else []), "autoremove"], result)
    if call.get("autoclean", False) and not call.check:
        _run_apt(call, ["apt-get", "autoclean"])
    result["cache_update_time"] = _find_list_time(call)
    return result


def _run_apt(call: Call, words: list[str]) -> tuple[str, str]:
    """Both streams of a command that succeeds."""
    done = call.run(["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", *words])
    out, err = text_of(done.stdout), text_of(done.stderr)
    if done.exit_code != 0:
        reason = keep_end(err.strip() or out.strip(), 2000)
        shown = {"stdout": keep_end(out, _KEPT), "stderr": keep_end(err, _KEPT), "cmd": words}
        raise ModuleFailure(f"{' '.join(words[:2])} failed: {reason}", rc=done.exit_code, **shown)
    return out, err


def _find_list_time(call: Call) -> int:
    times = text_of(call.run(["stat", "-c", "%Y", *_STAMPS]).stdout).split()
    return max((int(one) for one in times if _SECONDS.fullmatch(one)), default=0)


def _update_lists(call: Call, has_names: bool, result: Result) -> None:
    """Update the package lists, unless they are younger than `cache_valid_time`."""
    valid = int(call.get("cache_valid_time", 0))
    if not call.get("update_cache", False) and not valid:
        return
    before = _find_list_time(call)
    now = text_of(call.run(["date", "+%s"]).stdout).strip()
    if valid and _SECONDS.fullmatch(now) and before + valid > int(now):
        return
    if not call.check:
        _run_apt(call, ["apt-get", "-q", "update"])
        call.run(["touch", _STAMPS[1]])
    result["cache_updated"] = True
    result["changed"] = not has_names


def _parse_name(name: str) -> tuple[str, str, str]:
    """A package, the relation to a version, and the version, which may be a pattern."""
    found = re.fullmatch(r"([a-zA-Z0-9][^=<>/\s]*)\s*(?:(>=|=)\s*(\S+))?", name)
    if found is None:
        raise ModuleFailure(f"{name!r} is not the name of a package; supported: NAME, NAME=VERSION and NAME>=VERSION")
    return found.group(1), found.group(2) or "", found.group(3) or ""


def _find_version(call: Call, package: str) -> str:
    """The version that is installed, or an empty text."""
    done = call.run(["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Version}\\n", "--", package])
    rows = [line.split() for line in text_of(done.stdout).splitlines()]
    return next((row[-1] for row in rows if done.exit_code == 0 and len(row) > 1 and row[0][1:2] == "i"), "")


def _is_met(call: Call, name: str) -> bool:
    package, relation, version = _parse_name(name)
    has = _find_version(call, package)
    if not has or not version:
        return bool(has)
    if relation == ">=":
        return call.run(["dpkg", "--compare-versions", has, "ge", version]).exit_code == 0
    return fnmatch.fnmatchcase(has, version)


def _install(call: Call, names: list[str], state: str, result: Result) -> None:
    wanted = []
    for name in names:
        if name.startswith("/"):
            wanted.append(name)
        elif state == "latest" or not _is_met(call, name):
            wanted.append("=".join(part for part in (_parse_name(name)[0], _find_exact(call, name)) if part))
    if not wanted:
        return
    words = _settings(call)
    if call.get("install_recommends") is not None:
        words += ["-o", f"APT::Install-Recommends={'yes' if call.get('install_recommends') else 'no'}"]
    words += ["--only-upgrade"] if call.get("only_upgrade", False) else []
    _change(call, [*words, "install", "--", *wanted], result)


def _settings(call: Call) -> list[str]:
    """The options of apt-get that an installation and an upgrade have in common."""
    words = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    words += ["-t", str(call.get("default_release"))] if call.get("default_release") else []
    flags = {
        "allow_downgrade": "--allow-downgrades",
        "allow_unauthenticated": "--allow-unauthenticated",
        "autoremove": "--auto-remove",
    }
    return words + [flag for option, flag in flags.items() if call.get(option, False)]


def _find_exact(call: Call, name: str) -> str:
    """The version to install: that of `name=version`, where a pattern must match one that apt knows."""
    package, relation, version = _parse_name(name)
    if relation != "=" or not re.search(r"[*?\[]", version):
        return version if relation == "=" else ""
    out = text_of(call.run(["apt-cache", "madison", "--", package]).stdout)
    known = [row.split("|")[1].strip() for row in out.splitlines() if row.count("|") == 2]
    found = [one for one in known if fnmatch.fnmatchcase(one, version)]
    if not found:
        raise ModuleFailure(f"no package(s) matching '{package}' with version '{version}' available")
    return found[0]


def _remove(call: Call, names: list[str], result: Result) -> None:
    present = [package for package in (_parse_name(name)[0] for name in names) if _find_version(call, package)]
    if present:
        more = (["--purge"] if call.get("purge", False) else []) + (
            ["--auto-remove"] if call.get("autoremove", False) else []
        )
        _change(call, [*more, "remove", "--", *present], result)


def _change(call: Call, words: list[str], result: Result) -> None:
    """Run apt-get. Whether it changes something is known from its summary."""
    out, err = _run_apt(call, ["apt-get", "-y", *(["--simulate"] if call.check else []), *words])
    out, err = out[-_KEPT:], err[-_KEPT:]
    result.update(stdout=out, stderr=err, stdout_lines=out.splitlines(), stderr_lines=err.splitlines())
    result["changed"] = result["changed"] or _UNCHANGED.search(out) is None
