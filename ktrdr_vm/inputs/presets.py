"""What the presets of a profile stand for on this host: rules, and the settings of the package clients for the
guest."""

from __future__ import annotations

import hashlib
import threading

from ktrdr_vm.host.answers import Answers
from ktrdr_vm.host.authorities import find_authorities
from ktrdr_vm.host.package_sources import Sources, find_sources
from ktrdr_vm.host.paths import find_shipped
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


class AskedClients:
    """The package clients that the presets of a profile name, asked at the same time: they are slow, and other work
    goes on."""

    def __init__(self, profile: Profile, owner: tuple[int, int], answers: Answers) -> None:
        self._owner, self._answers = owner, answers
        self.named = sorted({rule.preset for rule in profile.egress.allow if rule.preset})
        self.lists = {
            preset: path for preset in self.named if (path := find_shipped("profiles/egress", f"{preset}.yaml"))
        }
        self._found: dict[str, Sources | Exception] = {}
        self._asking = [
            threading.Thread(target=self._ask, args=(preset,), daemon=True)
            for preset in self.named
            if preset not in self.lists
        ]
        for thread in self._asking:
            thread.start()

    def _ask(self, preset: str) -> None:
        try:
            self._found[preset] = find_sources(preset, self._owner, self._answers)
        except Exception as error:  # raised below, in the waiting thread
            self._found[preset] = error

    def wait(self) -> dict[str, Sources]:
        """The sources of each client. HostError of the first, by name, that could not be asked."""
        for thread in self._asking:
            thread.join()
        answered: dict[str, Sources] = {}
        for preset, sources in sorted(self._found.items()):
            if isinstance(sources, Exception):
                raise sources
            answered[preset] = sources
        return answered


def find_presets(
    profile: Profile, clients: AskedClients, owner: tuple[int, int]
) -> tuple[Presets, tuple[GuestFile, ...]]:
    """The rules of each preset of the profile, and the files by which the clients in the guest ask the same sources."""
    found = clients.wait()
    rules: list[tuple[str, tuple[EgressRule, ...]]] = []
    files: list[GuestFile] = []
    for preset in clients.named:
        if preset in clients.lists:
            with clients.lists[preset].open("rb") as file:
                rules.append((preset, load_preset(file.read(MAX_BYTES + 1), str(clients.lists[preset])).rules))
            continue
        reason = f"preset {preset}"
        ports = found[preset].destinations
        rules.append(
            (preset, tuple(EgressRule(host=host, ports=(port,), preset=preset, reason=reason) for host, port in ports))
        )
        files += [GuestFile(path, text, reason) for path, text in found[preset].files]
    if "debian" in clients.named and profile.image.url:
        files.append(GuestFile(APT_SOURCES, _render_apt(), "preset debian"))
    if profile.egress.allow or profile.egress.mode == "observe":
        files += _list_authorities([one.authority for one in found.values()], owner)
    return tuple(rules), tuple(files)


def _render_apt() -> str:
    """The archives of this host for a stock image of Debian; an image of a recipe was built with them."""
    # Imported late: only a stock image of Debian needs it.
    from ktrdr_vm.images.apt import read_apt_host

    host = read_apt_host()
    parts = [_APT.format(uri=host.main.public_uri, suites="@RELEASE@ @RELEASE@-updates")]
    if host.security is not None:
        parts.append(_APT.format(uri=host.security.public_uri, suites="@RELEASE@-security"))
    return "\n".join(parts)


def _list_authorities(named: list[str], owner: tuple[int, int]) -> list[GuestFile]:
    found = find_authorities([name for name in named if name], owner)
    return [
        GuestFile(f"{AUTHORITIES}{hashlib.sha256(pem.encode()).hexdigest()[:12]}.crt", pem, source)
        for source, pem in found
    ]
