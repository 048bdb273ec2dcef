"""What apt on this host would ask, from its own list, mirror lists included."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.package_sources import parse_apt_uris

PLAIN = "'https://deb.example.org/debian/dists/bookworm/InRelease' deb.example.org_InRelease 0 \nE: a warning\n"
LISTED = (
    "'mirror+file:/etc/apt/mirrors/debian.list/dists/bookworm/InRelease' a 0 \n"
    "'mirror+file:///etc/apt/mirrors/security.list/dists/bookworm-security/InRelease' b 0 \n"
)
FILES = {
    "/etc/apt/mirrors/debian.list": "# mirrors\nhttps://one.example.org/debian\tpriority:1\n\nhttp://two.example.org:8080/debian\n",
    "/etc/apt/mirrors/security.list": "https://security.example.org/debian-security",
}


def test_every_mirror_of_a_list_is_a_destination() -> None:
    assert parse_apt_uris(PLAIN, FILES.__getitem__) == [("deb.example.org", 443)]
    assert parse_apt_uris(PLAIN + LISTED, FILES.__getitem__) == [
        ("deb.example.org", 443), ("one.example.org", 443), ("two.example.org", 8080), ("security.example.org", 443)
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["http", "https", "tor"])
def test_a_list_on_the_network_is_not_fetched_and_says_so(scheme: str) -> None:
    with pytest.raises(HostError, match="from the network") as caught:
        parse_apt_uris(
            f"'mirror+{scheme}://lists.example.org/debian/dists/bookworm/InRelease' a 0 \n", FILES.__getitem__
        )
    assert "mirror+file:" in caught.value.hint


def test_a_list_that_is_not_there_is_named() -> None:
    def read(name: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", name)

    with pytest.raises(HostError, match="No such file") as caught:
        parse_apt_uris(LISTED, read)
    assert "debian.list" in caught.value.where


def test_an_old_style_list_and_other_transports_are_refused_and_local_sources_need_nothing() -> None:
    def parse(url: str) -> list[tuple[str, int]]:
        return parse_apt_uris(PLAIN + f"'{url}/dists/bookworm/InRelease' a 0 \n", FILES.__getitem__)

    with pytest.raises(HostError, match="from the network"):
        parse("mirror://lists.example.org/debian.txt")
    with pytest.raises(HostError, match="that the guest cannot use"):
        parse("tor+https://deb.example.org/debian")
    assert parse("file:/srv/debian") == parse("cdrom:[Debian]/") == [("deb.example.org", 443)]
    assert ("one.example.org", 443) in parse("mirror+copy:/etc/apt/mirrors/debian.list")
