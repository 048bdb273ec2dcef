"""What a package client of the host asks is what it asks in the guest: index, registry, authority, and no
credentials."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import package_sources
from ktrdr_vm.host.answers import Answers
from ktrdr_vm.host.authorities import find_authorities
from ktrdr_vm.host.outbound import find_obstacle
from ktrdr_vm.host.process import Completed

PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"


def ask(monkeypatch: pytest.MonkeyPatch, preset: str, said: Any) -> package_sources.Sources:
    text = said if isinstance(said, str) else json.dumps(said)
    monkeypatch.setattr(package_sources.process, "run", lambda *_, **__: Completed((), 0, text.encode(), b""))
    return package_sources.find_sources(preset, (0, 0))


def test_pip_asks_the_index_of_the_host_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "index": ["https://someone:word@pip.example/simple"],
        "extra": ["https://more.example:8443/x", "file:///srv/wheels", "https://b.example/"],
        "cert": ["/etc/company.pem"],
        "default": ["https://index.example/simple"],
    }
    found = ask(monkeypatch, "python", said)
    assert found.destinations == (("b.example", 443), ("more.example", 8443), ("pip.example", 443))
    assert found.files == (
        (
            "/etc/pip.conf",
            "[global]\nindex-url = https://pip.example/simple\nextra-index-url =\n    https://more.example:8443/x\n    https://b.example/\n",
        ),
    )
    assert found.authority == "/etc/company.pem" and "word" not in repr(found)


def test_a_client_with_its_own_defaults_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(
        monkeypatch, "python", {"index": [], "extra": [], "cert": [], "default": ["https://index.example/simple"]}
    )
    assert (found.destinations, found.files, found.authority) == ((("index.example", 443),), (), "")


def test_npm_asks_the_registries_of_the_host_scoped_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "registry": "https://u:p@npm.example/", "@firm:registry": "https://firm.example/npm/", "cafile": "/etc/company.pem",
        "//firm.example/npm/:_authToken": "word", "evil\n:registry": "https://evil.example/",
    }  # fmt: skip
    found = ask(monkeypatch, "node", said)
    assert found.destinations == (("firm.example", 443), ("npm.example", 443)) and found.authority == "/etc/company.pem"
    text = "@firm:registry=https://firm.example/npm/\nregistry=https://npm.example/\n"
    assert found.files == (("/etc/npmrc", text), ("/usr/local/etc/npmrc", text))


STORES = {"index.example": "https://files.example", "test.example": "https://test-files.example"}


@pytest.mark.parametrize(
    ("index", "extra"),
    [
        (["https://index.example/simple"], []),
        (["https://pip.example/simple"], ["https://index.example/simple"]),
        (["https://u:p@index.example/simple/"], []),
    ],
)
def test_an_index_that_is_named_has_its_files_on_the_same_host_as_by_default(
    monkeypatch: pytest.MonkeyPatch, index: list[str], extra: list[str]
) -> None:
    said = {"index": index, "extra": extra, "cert": [], "default": [], "stores": STORES}
    assert ("files.example", 443) in ask(monkeypatch, "python", said).destinations


def test_pip_trusts_the_same_hosts_and_has_the_same_pages_of_links(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "index": ["https://pip_1.example/simple"],
        "trusted": ["pip_1.example", "elsewhere.example"],
        "links": ["https://wheels.example/list", "/srv/wheels"],
    }
    found = ask(monkeypatch, "python", said)
    assert found.destinations == (("pip_1.example", 443), ("wheels.example", 443))
    assert found.files[0][1].endswith(
        "find-links =\n    https://wheels.example/list\ntrusted-host =\n    pip_1.example\n"
    )


def test_npm_accepts_the_certificates_that_the_host_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(monkeypatch, "node", {"registry": "https://npm.example/", "strict-ssl": False})
    assert found.files[0][1] == "registry=https://npm.example/\nstrict-ssl=false\n"


@pytest.mark.parametrize("host", ["10.1.2.3:3141", "[2001:db8::1]", "localhost:3141", "pip.localhost"])
@pytest.mark.parametrize("preset", ["python", "node", "debian"])
def test_a_source_that_no_rule_by_name_opens_is_refused(
    monkeypatch: pytest.MonkeyPatch, preset: str, host: str
) -> None:
    url = f"http://{host}/x"
    said = {"python": {"extra": [url], "default": []}, "node": {"registry": url}, "debian": f"'{url}' a 0 \n"}
    with pytest.raises(HostError, match="on this host has a source") as caught:
        ask(monkeypatch, preset, said[preset])
    assert "in place of the preset" in caught.value.hint


def test_the_callers_environment_configures_a_client_as_it_does_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, str]] = []

    def run(*_: Any, environment: dict[str, str], **__: Any) -> Completed:
        given.append(environment)
        return Completed((), 0, json.dumps({"registry": "https://npm.example/", "extra": []}).encode(), b"")

    monkeypatch.setattr(package_sources.process, "run", run)
    monkeypatch.setenv("npm_config_registry", "https://u:word@npm.example/")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    monkeypatch.setenv("PYTHONPATH", "/x")
    package_sources.find_sources("node", (0, 0), Answers(tmp_path))
    assert given[0]["npm_config_registry"] == "https://u:word@npm.example/"
    assert given[0]["PIP_INDEX_URL"] == "https://pip.example/simple" and "PYTHONPATH" not in given[0]
    assert not any("word" in path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize("url", ["https://a.example/x\nglobal = 1", "https://a.example/ b"])
def test_a_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    found = ask(
        monkeypatch, "python", {"index": ["https://good.example/", url], "extra": [url], "cert": [], "default": []}
    )
    assert found.files == (("/etc/pip.conf", "[global]\nindex-url = https://good.example/\n"),)


@pytest.mark.parametrize("said", ["", "nonsense", "[1]"])
def test_a_client_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    with pytest.raises(HostError, match="could not be read"):
        ask(monkeypatch, "node", said)


def test_the_authorities_of_a_host_are_found_each_once(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.crt").write_text(PEM.format("AAAA") + PEM.format("BBBB"))
    (folder / "deep/b.crt").write_text(PEM.format("AA\nAA"))
    (folder / "key.pem").write_text(PEM.format("DDDD"))
    own, bundle = tmp_path / "own.pem", tmp_path / "bundle.pem"
    own.write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n" + PEM.format("CCCC"))
    bundle.write_text(PEM.format("EEEE") + " " * 70_000)
    found = find_authorities([str(own), str(bundle), "relative", "/nowhere"], (0, 0), folder)
    assert found == (
        (str(folder / "a.crt"), PEM.format("AAAA")), (str(folder / "a.crt"), PEM.format("BBBB")), (str(own), PEM.format("CCCC"))
    )  # fmt: skip
    assert find_authorities([], (0, 0), tmp_path / "none") == ()


def test_so_many_authorities_and_none_of_a_bundle(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.crt").write_text(PEM.format(f"{number:04}"))
    (tmp_path / "00.crt").write_text(PEM.format("0000") + " " * (64 * 1024))
    found = find_authorities([], (0, 0), tmp_path)
    assert [Path(name).name for name, _ in found] == [f"{number:02}.crt" for number in range(1, 33)]


def test_a_host_whose_way_out_is_a_proxy_is_said(tmp_path: Path) -> None:
    routes, system = tmp_path / "route", tmp_path / "environment"
    routes.write_text(ROUTES + "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n")
    assert find_obstacle({}, routes, system) == ""
    assert find_obstacle({"https_proxy": "http://proxy.example:3128"}, routes, system).startswith(
        "https_proxy is set on this host"
    )
    system.write_text('PATH="/bin"\nexport HTTPS_PROXY="http://u:word@proxy.example"\n')
    said = find_obstacle({}, routes, system)
    assert said.startswith("HTTPS_PROXY is set") and "connects directly" in said and "word" not in said
    routes.write_text(ROUTES + "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\n")
    assert find_obstacle({}, routes, tmp_path / "none") == "this host has no default route"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose programs and settings are beneath a folder, and are old."""
    for name, content in {
        "bin/python3": "\x7fELF", "bin/npm-cli.js": "#!", "bin/node": "\x7fELF", "pip.conf": "", ".npmrc": "", "etc": "",
        "bin/apt-get": "\x7fELF", "apt/parts/10own": "", "apt/lists/own.list": "", "mirrors.list": "",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "bin/npm").symlink_to("npm-cli.js")
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(package_sources.process, "find_program", lambda name: tmp_path / "bin" / name)
    later = time.time_ns() + 3_600_000_000_000
    monkeypatch.setattr(package_sources.time, "time_ns", lambda: later)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for program in ("node", "python3"):
        (tmp_path / "bin" / program).chmod(0o755)
    return tmp_path


def ask_host(
    monkeypatch: pytest.MonkeyPatch, host: Path, preset: str, said: Any
) -> tuple[package_sources.Destination, ...]:
    monkeypatch.setattr(
        package_sources.process, "run", lambda *_, **__: Completed((), 0, json.dumps(said).encode(), b"")
    )
    return package_sources.find_sources(preset, (0, 0), Answers(host / "home" / "clients")).destinations


def make_pip(host: Path, name: str) -> dict[str, Any]:
    read = [str(host / "pip.conf"), str(host / "bin/python3")]
    return {"index": [f"https://{name}/"], "extra": [], "cert": [], "default": [], "read": read}


def make_npm(host: Path, name: str) -> dict[str, Any]:
    named = {"userconfig": str(host / ".npmrc"), "globalconfig": str(host / "etc/npmrc")}
    return {"registry": f"https://{name}/", **named}


@pytest.mark.parametrize(
    ("preset", "make", "settings"), [("python", make_pip, "pip.conf"), ("node", make_npm, ".npmrc")]
)
def test_a_client_is_asked_again_when_its_settings_change(
    monkeypatch: pytest.MonkeyPatch, host: Path, preset: str, make: Any, settings: str
) -> None:
    assert ask_host(monkeypatch, host, preset, make(host, "one.example")) == (("one.example", 443),)
    assert ask_host(monkeypatch, host, preset, make(host, "two.example")) == (("one.example", 443),)
    (host / settings).write_text("changed")
    assert ask_host(monkeypatch, host, preset, make(host, "two.example")) == (("two.example", 443),)


@pytest.mark.parametrize(("preset", "make"), [("python", make_pip), ("node", make_npm)])
def test_a_client_is_asked_again_with_another_path(
    monkeypatch: pytest.MonkeyPatch, host: Path, preset: str, make: Any
) -> None:
    ask_host(monkeypatch, host, preset, make(host, "one.example"))
    monkeypatch.setenv("PATH", f"{host}/bin:/opt/bin")
    assert ask_host(monkeypatch, host, preset, make(host, "two.example")) == (("two.example", 443),)
    # And with other settings in the environment.
    for variable in ("PIP_INDEX_URL", "npm_config_registry"):
        monkeypatch.setenv(variable, "https://x.example/")
    assert ask_host(monkeypatch, host, preset, make(host, "three.example")) == (("three.example", 443),)


@pytest.mark.parametrize("program", ["node", "npm", "python3"])
def test_the_choice_of_a_version_manager_is_not_kept(monkeypatch: pytest.MonkeyPatch, host: Path, program: str) -> None:
    """The program in the PATH starts one of several, and nothing that is known says which."""
    preset, make = ("python", make_pip) if program == "python3" else ("node", make_npm)
    said = make(host, "one.example")
    if program == "python3":
        said["read"] = [str(host / "pip.conf"), "/opt/versions/3.12/bin/python3"]
    else:
        path = host / "bin" / program
        path.unlink()
        path.write_text("#!/bin/sh")
        path.chmod(0o755)
    ask_host(monkeypatch, host, preset, said)
    assert ask_host(monkeypatch, host, preset, make(host, "two.example")) == (("two.example", 443),)


def test_what_is_kept_of_a_client_has_no_credentials(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    ask_host(monkeypatch, host, "python", make_pip(host, "someone:word@one.example"))
    ask_host(monkeypatch, host, "node", make_npm(host, "someone:word@one.example"))
    kept = [path.read_text() for path in (host / "home" / "clients").iterdir()]
    assert len(kept) == 2 and not any("word" in text for text in kept)


def ask_apt(monkeypatch: pytest.MonkeyPatch, host: Path, uri: str) -> tuple[package_sources.Destination, ...]:
    """The destinations that apt of the host has with `uri` in its list."""
    paths = ("apt/apt.conf", "apt/parts/", "apt/sources.list", "apt/lists/")
    said = {"apt-get": f"'{uri}' a 0 \n", "apt-config": "".join(f"PATH='{host}/{one}'\n" for one in paths)}
    monkeypatch.setattr(
        package_sources.process, "run", lambda argv, **_: Completed((), 0, said[Path(argv[0]).name].encode(), b"")
    )
    return package_sources.find_sources("debian", (0, 0), Answers(host / "home" / "clients")).destinations


ONE, TWO = "https://one.example/dists/x/InRelease", "https://two.example/dists/x/InRelease"


@pytest.mark.parametrize(
    "name",
    ["apt/apt.conf", "apt/parts/10own", "apt/parts/20new", "apt/sources.list", "apt/lists/own.list", "bin/apt-get"],
)
def test_apt_is_asked_again_when_its_settings_change(monkeypatch: pytest.MonkeyPatch, host: Path, name: str) -> None:
    assert ask_apt(monkeypatch, host, ONE) == (("one.example", 443),)
    assert ask_apt(monkeypatch, host, TWO) == (("one.example", 443),)
    (host / name).write_text("\x7fELF changed")
    assert ask_apt(monkeypatch, host, TWO) == (("two.example", 443),)


def test_apt_is_asked_again_when_its_list_of_mirrors_changes(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    (host / "mirrors.list").write_text("https://one.example/debian\n")
    listed = f"mirror+file:{host}/mirrors.list/dists/x/InRelease"
    assert ask_apt(monkeypatch, host, listed) == (("one.example", 443),)
    (host / "mirrors.list").write_text("https://another.example/debian\n")
    assert ask_apt(monkeypatch, host, listed) == (("another.example", 443),)


@pytest.mark.parametrize(
    ("name", "text"), [("apt/parts/10own", '#include "/etc/more.conf";'), ("bin/apt-get", "#!/bin/sh")]
)
def test_what_apt_reads_elsewhere_is_not_known(
    monkeypatch: pytest.MonkeyPatch, host: Path, name: str, text: str
) -> None:
    (host / name).write_text(text)
    assert ask_apt(monkeypatch, host, ONE) == (("one.example", 443),)
    assert ask_apt(monkeypatch, host, TWO) == (("two.example", 443),)
