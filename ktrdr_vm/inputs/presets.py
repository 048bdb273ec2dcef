"""What the presets of a profile stand for on this host: rules, and the settings of the package clients for the guest."""

from __future__ import annotations

import hashlib
import threading

from ktrdr_vm.host.authorities import find_authorities
from ktrdr_vm.host.package_sources import Sources, find_sources
from ktrdr_vm.host.paths import find_shipped
from ktrdr_vm.images.apt import read_apt_host
from ktrdr_vm.plan.facts import AUTHORITIES, GuestFile
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.model import Profile
from ktrdr_vm.profile.preset import load_preset
from ktrdr_vm.profile.strict_yaml import MAX_BYTES

Presets = tuple[tuple[str, tuple[EgressRule, ...]], ...]
# The guest puts the name of its own release in the place of the word.
APT_SOURCES = "/etc/ktrdr/debian.sources"
_APT = """\
Types: deb
URIs: {uri}
Suites: {suites}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def find_presets(profile: Profile, owner: tuple[int, int]) -> tuple[Presets, tuple[GuestFile, ...]]:
    """The rules of each preset of the profile, and the files by which the clients in the guest ask the same sources."""
    named = sorted({rule.preset for rule in profile.egress.allow if rule.preset})
    lists = {preset: path for preset in named if (path := find_shipped("profiles/egress", f"{preset}.yaml"))}
    found = _ask_clients([preset for preset in named if preset not in lists], owner)
    rules: list[tuple[str, tuple[EgressRule, ...]]] = []
    files: list[GuestFile] = []
    for preset in named:
        if preset in lists:
            with lists[preset].open("rb") as file:
                rules.append((preset, load_preset(file.read(MAX_BYTES + 1), str(lists[preset])).rules))
            continue
        reason = f"preset {preset}"
        ports = found[preset].destinations
        rules.append((preset, tuple(EgressRule(host=host, ports=(port,), preset=preset, reason=reason) for host, port in ports)))
        files += [GuestFile(path, text, reason) for path, text in found[preset].files]
    if "debian" in named and profile.image.url:
        files.append(GuestFile(APT_SOURCES, _render_apt(), "preset debian"))
    if profile.egress.allow or profile.egress.mode == "observe":
        files += _list_authorities([one.authority for one in found.values()], owner)
    return tuple(rules), tuple(files)


def _ask_clients(presets: list[str], owner: tuple[int, int]) -> dict[str, Sources]:
    """The clients are slow, so they run at the same time."""
    found: dict[str, Sources | Exception] = {}

    def ask(preset: str) -> None:
        try:
            found[preset] = find_sources(preset, owner)
        except Exception as error:  # raised below, in the waiting thread
            found[preset] = error

    asking = [threading.Thread(target=ask, args=(preset,)) for preset in presets]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    answered: dict[str, Sources] = {}
    for preset in presets:
        sources = found[preset]
        if isinstance(sources, Exception):
            raise sources
        answered[preset] = sources
    return answered


def _render_apt() -> str:
    """The archives of this host for a stock image of Debian; an image of a recipe was built with them."""
    host = read_apt_host()
    parts = [_APT.format(uri=host.main.public_uri, suites="@RELEASE@ @RELEASE@-updates")]
    if host.security is not None:
        parts.append(_APT.format(uri=host.security.public_uri, suites="@RELEASE@-security"))
    return "\n".join(parts)


def _list_authorities(named: list[str], owner: tuple[int, int]) -> list[GuestFile]:
    found = find_authorities([name for name in named if name], owner)
    return [GuestFile(f"{AUTHORITIES}{hashlib.sha256(pem.encode()).hexdigest()[:12]}.crt", pem, source) for source, pem in found]
