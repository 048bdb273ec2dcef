"""The sources of the package clients of the host, so that the mirror of a company works and no registry is
hard-coded."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ktrdr_vm.errors import HostError, KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.host.answers import Answers
from ktrdr_vm.host.paths import list_shipped
from ktrdr_vm.users import find_account_folder, find_home_folder, in_user_namespace

Destination = tuple[str, int]
"""A host name and a TCP port."""

Owner = tuple[int, int]
"""uid and gid of the user who runs the command."""


# The version of the kept answers; increased when the same question gets another answer.
_VERSION = 2
# Settings of pip and npm in the environment of the caller, which override their files.
_SETTINGS = re.compile(
    r"PIP_(?:INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|TRUSTED_HOST|CERT|CONFIG_FILE)"
    r"|(?i:npm_config_)(?:(?i:registry|cafile|userconfig|globalconfig|strict_ssl))"
)
# Sources of apt on the host itself, which need no network.
_LOCAL = ("file", "copy", "cdrom")


@dataclass(frozen=True)
class Sources:
    """The destinations of a package client of the host, sorted, and the same settings for the client in the guest,
    as files.

    A file is its path in the guest and its text, without credentials. `authority` is a file of the host with the
    certificates that the client trusts, or empty. `read` are the paths of the host from which the client made its
    answer; empty if not all of them are known.
    """

    destinations: tuple[Destination, ...]
    files: tuple[tuple[str, str], ...] = ()
    authority: str = ""
    read: tuple[str, ...] = ()


def find_sources(preset: str, owner: Owner, answers: Answers | None = None) -> Sources:
    """The sources of one of `PRESETS`, as configured for the clients of `owner`. HostError if a client cannot be run.

    With `answers`, a client is asked again only if something that it reads has changed.
    """
    name, began = f"{owner[0]}-{preset}.json", time.time_ns()
    # A digest of the settings, because a URL may contain a password and the question is kept.
    settings = hashlib.sha256(repr(sorted(_find_settings().items())).encode()).hexdigest()
    question = [_VERSION, preset, *owner, *_find_surroundings(owner), settings]
    if answers is not None and (kept := answers.find(name, question)) is not None:
        destinations, files, authority = kept
        return Sources(tuple((host, port) for host, port in destinations), tuple(map(tuple, files)), authority)
    found = PRESETS[preset](owner)
    if answers is not None and found.destinations and found.read:
        answers.keep(name, question, [found.destinations, found.files, found.authority], found.read, began)
    if not found.destinations:
        raise HostError(
            f"the client on this host has no source for the preset {preset}",
            where="egress.allow",
            hint="configure the client on this host, or name the hosts in the profile",
        )
    return found


def _ask_apt(owner: Owner) -> Sources:
    # It prints what it would fetch, and fetches nothing; unlike the index of apt it works before the first update.
    listed = _ask(["apt-get", "--print-uris", "update"], owner)
    mirrors: list[str] = []

    def read(name: str) -> str:
        mirrors.append(name)
        return Path(name).read_text(encoding="utf-8", errors="replace")

    destinations = _sort(parse_apt_uris(listed, read))
    return Sources(destinations, read=(*known, *mirrors) if (known := _list_apt_files(owner)) else ())


def _list_apt_files(owner: Owner) -> tuple[str, ...]:
    """The files and folders from which apt has its sources; empty if not all of them are known."""
    program = Path(process.find_program("apt-get") or "")
    named = ("Dir::Etc::main/f", "Dir::Etc::parts/d", "Dir::Etc::sourcelist/f", "Dir::Etc::sourceparts/d")
    try:
        said = _ask(["apt-config", "shell", *(word for one in named for word in ("PATH", one))], owner)
        # A line for each: PATH='/etc/apt/apt.conf'
        main, parts, *sources = (Path(word.partition("=")[2]) for word in shlex.split(said))
        settings = [main, *_list_folder(parts)]
        includes = any("#include" in one.read_text(errors="replace") for one in settings if one.is_file())
        read = [program, *settings, parts, *sources, *(path for one in sources for path in _list_folder(one))]
    except (HostError, OSError, ValueError):
        return ()
    return () if includes or not _is_binary(program) else tuple(map(str, read))


def _list_folder(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def parse_apt_uris(listed: str, read: Callable[[str], str]) -> list[Destination]:
    """The destinations of the output of `apt-get --print-uris update`. `read` returns a file of the host.

    Cloud images list their mirrors in a file (`mirror+file:`), of which apt may take any. HostError if a list is on the
    network, because nothing is fetched for a plan.
    """
    urls = []
    for line in listed.splitlines():
        if not line.startswith("'"):
            continue
        url = line.split("'")[1]
        kind, _, rest = url.partition(":")
        if kind in ("http", "https"):
            urls.append(url)
        if kind in ("http", "https", *_LOCAL):
            continue
        if kind not in ("mirror", "mirror+file", "mirror+copy", "mirror+http", "mirror+https", "mirror+tor"):
            raise HostError(
                f"apt on this host has a source that the guest cannot use, {url[:200]}",
                where="apt",
                hint="list the hosts in the profile in place of the preset",
            )
        name = url.removeprefix("mirror+").partition("/dists/")[0]
        if kind not in ("mirror+file", "mirror+copy"):
            raise HostError(
                f"apt on this host reads its mirrors from the network, {name}",
                where="apt",
                hint="name the mirrors in the profile, or write them into a file and use mirror+file:",
            )
        try:
            lines = read("/" + rest.partition("/dists/")[0].strip("/")).splitlines()
        except OSError as error:
            raise HostError(
                f"the list of mirrors of apt cannot be read: {error.strerror}", where=name, hint="correct apt's sources"
            ) from None
        urls += [one.split()[0] for one in lines if one.strip() and not one.lstrip().startswith("#")]
    _refuse_addresses("apt", urls)
    return _destinations(urls)


# Without the current folder, /, in the search of modules. `get_configuration_files` is missing in old versions of pip.
_ASK_PIP = """\
import json, site, sys
sys.path = [one for one in sys.path if one]
import pip
from pip._internal import configuration
from pip._internal.models.index import PyPI, TestPyPI
found = configuration.Configuration(isolated=False)
found.load()
values = dict(found.items())
if values and isinstance(next(iter(values.values())), dict):
    values = {key: value for inner in values.values() for key, value in inner.items()}
def pick(end):
    return [word for key, value in values.items() if key.split(".", 1)[-1] == end for word in str(value).split()]
files = [one for kind in getattr(configuration, "get_configuration_files", dict)().values() for one in kind]
python = [sys.executable, sys.prefix + "/pyvenv.cfg", pip.__file__, site.getusersitepackages(), *sys.path]
print(json.dumps({
    "index": pick("index-url"), "extra": pick("extra-index-url"), "cert": pick("cert"),
    "trusted": pick("trusted-host"), "links": pick("find-links"),
    "stores": {one.netloc: "https://" + one.file_storage_domain for one in (PyPI, TestPyPI)},
    "default": [PyPI.simple_url, "https://" + PyPI.file_storage_domain],
    "read": files and [*files, *python],
}))
"""


def _ask_pip(owner: Owner) -> Sources:
    # The interpreter of this program may lack pip; users configure the pip of the host.
    said = _parse(_ask(["python3", "-c", _ASK_PIP], owner), "pip")
    index, extra, cert, links, trusted, default = (
        [str(one) for one in said.get(key, ())] for key in ("index", "extra", "cert", "links", "trusted", "default")
    )
    used = [*(index or default), *extra, *links]
    _refuse_addresses("pip", used)
    # The files of these indexes are on another host, which is also asked if the configuration names the index.
    stores = {str(name): str(url) for name, url in dict(said.get("stores", {})).items()}
    used += [stores[host] for host, _ in _destinations(used) if host in stores]
    trusted = [one for one in trusted if one.partition(":")[0] in {host for host, _ in _destinations(used)}]
    read = tuple(str(path) for path in said.get("read", ()))
    if str(process.find_program("python3")) not in read:
        # A version manager chose another interpreter, from inputs that only the version manager knows.
        read = ()
    return Sources(
        _sort(_destinations(used)), _render_pip(index, extra, links, trusted), cert[-1] if cert else "", read
    )


def _render_pip(
    index: list[str], extra: list[str], links: list[str], trusted: list[str]
) -> tuple[tuple[str, str], ...]:
    lines = [f"index-url = {url}" for url in _list_public(index)[:1]]
    further = {"extra-index-url": _list_public(extra), "find-links": _list_public(links), "trusted-host": trusted}
    for name, values in further.items():
        if values:
            lines += [f"{name} =", *(f"    {value}" for value in values)]
    return (("/etc/pip.conf", "\n".join(["[global]", *lines, ""])),) if lines else ()


def _ask_npm(owner: Owner) -> Sources:
    said = _parse(_ask(["npm", "config", "list", "--json"], owner), "npm")
    registries = {
        key: str(value)
        for key, value in said.items()
        if key == "registry" or re.fullmatch(r"@[a-z0-9._~-]+:registry", key)
    }
    lines = [f"{key}={urls[0]}" for key, value in sorted(registries.items()) if (urls := _list_public([value]))]
    _refuse_addresses("npm", registries.values())
    if lines and said.get("strict-ssl") is False:
        lines.append("strict-ssl=false")
    text = "\n".join([*lines, ""])
    # Debian's npm reads the first as its global settings, npm from upstream the second.
    files = tuple((path, text) for path in ("/etc/npmrc", "/usr/local/etc/npmrc")) if lines else ()
    destinations = _sort(_destinations([word for value in registries.values() for word in value.split()]))
    return Sources(destinations, files, str(said.get("cafile") or ""), _list_npm_files(said, owner))


def _list_npm_files(said: dict[str, Any], owner: Owner) -> tuple[str, ...]:
    """The files that npm reads for its settings; empty if a version manager chooses npm or node by other inputs."""
    npm = Path(os.path.realpath(process.find_program("npm") or ""))
    node = Path(os.path.realpath(shutil.which("node", path=_find_surroundings(owner)[1]) or ""))
    named = [said.get(key) for key in ("userconfig", "globalconfig")]
    is_node = node.name in ("node", "nodejs") and _is_binary(node)
    if npm.name != "npm-cli.js" or not is_node or not all(isinstance(one, str) and one for one in named):
        return ()
    top = npm.parents[1]
    # It runs in /, where it searches for a project.
    project = ("/.npmrc", "/package.json", "/node_modules")
    return (str(npm), str(node), str(top / "npmrc"), str(top / "package.json"), *map(str, named), *project)


def _is_binary(program: Path) -> bool:
    """True for a client itself, not for a script that starts one of several."""
    try:
        with program.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def _parse(said: str, client: str) -> dict[str, Any]:
    try:
        content = json.loads(said)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise HostError(
            f"the settings of {client} could not be read: no JSON", where=client, hint="name the hosts in the profile"
        )
    return content


def _list_public(urls: list[str]) -> list[str]:
    """The URLs that the guest can ask, without user and password."""
    parts = [urlsplit(url) for url in urls if _destinations([url])]
    return [urlunsplit(one._replace(netloc=one.netloc.rpartition("@")[2])) for one in parts]


def _sort(destinations: list[Destination]) -> tuple[Destination, ...]:
    return tuple(sorted(set(destinations)))


PRESETS: dict[str, Callable[[Owner], Sources]] = {"debian": _ask_apt, "python": _ask_pip, "node": _ask_npm}


def list_presets() -> list[str]:
    """All valid names of presets, sorted: those of package clients and of the shipped lists."""
    return sorted({*PRESETS, *list_shipped("profiles/egress")})


def _find_surroundings(owner: Owner) -> tuple[str, str]:
    """HOME and PATH of a client."""
    return find_client_home(owner[0]), os.environ.get("PATH", process.SYSTEM_PATH)


def _find_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _SETTINGS.fullmatch(name)}


def _refuse_addresses(client: str, urls: Iterable[str]) -> None:
    """HostError for a source that is no name: a preset allows names, and the loopback of the guest is its own."""
    for url in urls:
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            continue
        if parts.scheme not in ("http", "https"):
            continue
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            raise HostError(
                f"{client} on this host has a source with an address, {host}, and a preset allows names only",
                where=client,
                hint="configure a name, or list hosts and addresses (cidr) in the profile in place of the preset",
            )
        if host == "localhost" or host.endswith(".localhost"):
            raise HostError(
                f"{client} on this host has a source on this host itself, {host}, which the guest cannot reach",
                where=client,
                hint="list the hosts in the profile in place of the preset",
            )


def _ask(argv: list[str], owner: Owner) -> str:
    # As the user, because the configuration is theirs and their PATH may contain any program, which root must not run.
    home, path = _find_surroundings(owner)
    settings = {**_find_settings(), "HOME": home, "PATH": path}
    try:
        return process.run(argv, timeout=30, environment=settings, cwd=Path("/"), owner=owner).text
    except KtrdrError as error:
        raise HostError(
            f"the sources of {argv[0]} could not be read: {error.message[:200]}",
            where=argv[0],
            hint="install it, or name the hosts in the profile",
        ) from None


def find_client_home(uid: int) -> str:
    """The home directory whose settings pip and npm of a user read."""
    if in_user_namespace() and uid == os.geteuid():
        return str(find_home_folder())
    return find_account_folder(uid)


def _destinations(urls: list[str]) -> list[Destination]:
    found = []
    for url in urls:
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError:
            continue  # not a URL, or an invalid port
        if parts.scheme not in ("http", "https") or not parts.hostname:
            continue
        if re.fullmatch(r"[a-z0-9_.-]+", parts.hostname) and url.isprintable() and " " not in url:
            found.append((parts.hostname, port or (443 if parts.scheme == "https" else 80)))
    return found
