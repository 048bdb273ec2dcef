"""A Debian root from packages, by mmdebstrap. Everything it starts and mounts ends with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ktrdr_vm.host import process
from ktrdr_vm.images.apt import AptHost

# For a slow mirror and a slow host; without a limit a stalled download would hold the lock forever.
TIMEOUT = 3600.0

# In separate namespaces: when this process ends, the kernel ends its children and its mounts.
CONTAINED = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "--")


def make_source_lines(host: AptHost, suite: str, *, security: bool) -> tuple[str, ...]:
    """The sources of a build in one-line format. The signing keys are those of the host, because the root has none
    yet."""
    lines = [f"deb [signed-by={host.keyring}] {host.main.uri} {suite} main"]
    if security and host.security is not None:
        lines.append(f"deb [signed-by={host.keyring}] {host.security.uri} {suite}-security main")
    return tuple(lines)


def make_mmdebstrap_argv(
    host: AptHost,
    suite: str,
    target: Path,
    *,
    variant: str,
    security: bool,
    packages: Sequence[str],
    exclude: Sequence[str],
) -> tuple[str, ...]:
    """The command line. A target that ends in .tar is an archive, any other a directory."""
    return (
        *CONTAINED,
        "mmdebstrap",
        "--mode=root",
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={glob}" for glob in exclude),
        *(f"--aptopt={option.rstrip(';')}" for option in host.options),
        '--aptopt=Acquire::Retries "3"',
        suite,
        str(target),
        *make_source_lines(host, suite, security=security),
    )


def run_mmdebstrap(argv: Sequence[str], scratch: Path) -> None:
    """`scratch` is for temporary files, because /tmp can be small or in memory."""
    process.require_program("mmdebstrap")
    process.run(argv, timeout=TIMEOUT, environment={"TMPDIR": str(scratch), "HOME": str(scratch)})


def read_packages(root: Path) -> dict[str, str]:
    """Package names and versions from the dpkg database in the root."""
    listing = process.run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Package}\t${Version}\n"], timeout=60
    )
    return dict(line.split("\t", 1) for line in listing.text.splitlines() if "\t" in line)
