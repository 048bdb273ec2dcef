"""`git`: a checkout in the guest, with the git of the guest."""

from __future__ import annotations

import re

from ktrdr_vm.errors import keep_end
from ktrdr_vm.gates.modules.base import Call, ModuleFailure, Result, text_of
from ktrdr_vm.guest.protocol import GuestResult

_COMMIT = re.compile(r"[0-9a-f]{7,64}\Z")


def run_git(call: Call) -> Result:
    repo, dest, version = str(call.get("repo")), str(call.get("dest", "")), str(call.get("version", "HEAD"))
    remote = str(call.get("remote", "origin"))
    bare = call.get("bare", False)
    folder = dest if bare else f"{dest.rstrip('/')}/.git"
    if not dest or call.run(["test", "-e", f"{folder}/HEAD" if bare else folder]).exit_code != 0:
        if call.check or not call.get("clone", True):
            return {"changed": True, "before": None, "after": _find_remote_commit(call, repo, version)}
        _clone(call, repo, dest, version, remote)
        return {"changed": True, "before": None, "after": _head(call, dest), "remote_url_changed": False}
    before = _head(call, dest)
    if not call.get("update", True):
        return {"changed": False, "before": before, "after": before}
    dirty = not bare and text_of(_git(call, dest, "status", "--porcelain", "--untracked-files=no").stdout).strip()
    if dirty and not call.get("force", False):
        raise ModuleFailure("Local modifications exist in the destination: " + dest + " (force=no).", before=before)
    if call.check:
        return {"changed": False, "before": before, "after": before, "msg": "not fetched in check mode"}
    if dirty:
        _git(call, dest, "reset", "--hard", "HEAD")
    known = text_of(_git(call, dest, "config", "--get", f"remote.{remote}.url", check=False).stdout).strip()
    if known != repo:
        _git(call, dest, "remote", "set-url" if known else "add", "--", remote, repo)
    depth = ["--depth", str(call.get("depth"))] if call.get("depth") else []
    refspec = [str(call.get("refspec"))] if call.get("refspec") else []
    _git(call, dest, "fetch", "--tags", "--force", *depth, "--", remote, *refspec)
    if not bare:
        _checkout(call, dest, version, remote)
    after = _head(call, dest)
    return {
        "changed": bool(before != after or dirty),
        "before": before,
        "after": after,
        "remote_url_changed": bool(known and known != repo),
    }


def _clone(call: Call, repo: str, dest: str, version: str, remote: str) -> None:
    command = ["git", "clone", "--origin", remote]
    if call.get("bare", False):
        command.append("--bare")
    elif call.get("recursive", True):
        command.append("--recursive")
    if call.get("depth") and not _COMMIT.match(version):
        command += ["--depth", str(call.get("depth"))] + (["--branch", version] if version != "HEAD" else [])
    if call.get("single_branch", False):
        command.append("--single-branch")
    completed = call.run(["env", "GIT_TERMINAL_PROMPT=0", *command, "--", repo, dest])
    if completed.exit_code != 0:
        raise _failed("clone", completed)
    if version != "HEAD" and not call.get("bare", False):
        _checkout(call, dest, version, remote)


def _find_remote_commit(call: Call, repo: str, version: str) -> str:
    """The commit that a version names in the remote repository. A version that is no branch and no tag is a commit."""
    names = (
        [version]
        if version == "HEAD"
        else [f"refs/heads/{version}", f"refs/tags/{version}^{{}}", f"refs/tags/{version}"]
    )
    completed = call.run(["env", "GIT_TERMINAL_PROMPT=0", "git", "ls-remote", "--", repo, *names])
    if completed.exit_code != 0:
        raise _failed("ls-remote", completed)
    rows = [line.split() for line in text_of(completed.stdout).splitlines()]
    known = {row[1]: row[0] for row in rows if len(row) == 2}
    if version == "HEAD" and "HEAD" not in known:
        raise ModuleFailure(f"Could not determine remote revision for {version}")
    return next((known[name] for name in names if name in known), version)


def _checkout(call: Call, dest: str, version: str, remote: str) -> None:
    if version == "HEAD":
        found = _git(call, dest, "symbolic-ref", "--short", f"refs/remotes/{remote}/HEAD", check=False)
        if found.exit_code != 0:
            return
        version = text_of(found.stdout).strip().removeprefix(f"{remote}/")
    branch = _git(call, dest, "rev-parse", "--verify", "--quiet", f"refs/remotes/{remote}/{version}", check=False)
    if branch.exit_code == 0:
        _git(call, dest, "checkout", "--force", "-B", version, f"refs/remotes/{remote}/{version}")
    else:
        _git(call, dest, "checkout", "--force", "--detach", version)
    if call.get("recursive", True):
        _git(call, dest, "submodule", "update", "--init", "--recursive")


def _head(call: Call, dest: str) -> str | None:
    found = _git(call, dest, "rev-parse", "HEAD", check=False)
    return text_of(found.stdout).strip() if found.exit_code == 0 else None


def _git(call: Call, dest: str, *arguments: str, check: bool = True) -> GuestResult:
    completed = call.run(["env", "GIT_TERMINAL_PROMPT=0", "git", "-C", dest, *arguments])
    if check and completed.exit_code != 0:
        raise _failed(arguments[0], completed)
    return completed


def _failed(what: str, completed: GuestResult) -> ModuleFailure:
    stderr = text_of(completed.stderr).strip()
    return ModuleFailure(
        f"git {what} failed: {keep_end(stderr, 2000)}",
        rc=completed.exit_code,
        stdout=keep_end(text_of(completed.stdout), 2000),
        stderr=stderr,
    )
