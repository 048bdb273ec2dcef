"""What the presets of a profile bring into the guest: settings of the clients, the archives of apt, authorities."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.host.answers import Answers
from ktrdr_vm.host.package_sources import Sources
from ktrdr_vm.images.apt import AptHost, AptSource
from ktrdr_vm.inputs import presets as module
from ktrdr_vm.inputs.presets import APT_SOURCES, AskedClients, find_presets
from ktrdr_vm.profile.load import build_profile

CLIENT = Sources((("pip.example", 443),), (("/etc/pip.conf", "[global]\n"),), "/etc/company.pem")
STOCK = {"image": {"url": "https://images.example/debian.qcow2", "sha256": "a" * 64}}


def find(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, **part: Any) -> dict[str, str]:
    """The files, by path."""
    monkeypatch.setattr(module, "find_sources", lambda preset, *_: CLIENT)
    monkeypatch.setattr(
        module, "find_authorities", lambda named, _owner: tuple((name, "PEM\n") for name in [*named, "/usr/x.crt"])
    )
    source = AptSource("https://someone:word@mirror.example/debian", security=False)
    monkeypatch.setattr("ktrdr_vm.images.apt.read_apt_host", lambda: AptHost(source, None, ()))
    profile = build_profile({"version": 1, "name": "p", "image": "debian-13-docker", **part})
    _, files = find_presets(profile, AskedClients(profile, (0, 0), Answers(tmp_path)), (0, 0))
    return {("authority" if one.path.endswith(".crt") else one.path): one.text for one in files}


@pytest.mark.parametrize(
    ("egress", "given"),
    [({"allow": [{"host": "a.example"}]}, True), ({"mode": "observe"}, True), ({"allow": []}, False), ({}, False)],
)
def test_authorities_are_for_a_profile_that_reaches_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, egress: dict[str, Any], given: bool
) -> None:
    assert find(monkeypatch, tmp_path, egress=egress) == ({"authority": "PEM\n"} if given else {})


def test_a_client_brings_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    files = find(monkeypatch, tmp_path, egress={"allow": [{"preset": "python"}]})
    assert files == {"/etc/pip.conf": "[global]\n", "authority": "PEM\n"}


@pytest.mark.parametrize(("image", "given"), [(STOCK, True), ({}, False)], ids=["stock", "recipe"])
def test_the_archives_of_the_host_are_for_a_stock_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, image: dict[str, Any], given: bool
) -> None:
    """An image of a recipe was built with them."""
    files = find(monkeypatch, tmp_path, egress={"allow": [{"preset": "debian"}]}, **image)
    assert (APT_SOURCES in files) == given
    if given:
        assert "URIs: https://mirror.example/debian" in files[APT_SOURCES] and "word" not in files[APT_SOURCES]
