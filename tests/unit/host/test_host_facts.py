"""What the host is asked for, with the answers of programs made up: the accelerator's verdict and the package
sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host import accelerator, package_sources, process
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.process import Completed

BOOT = "11111111-2222"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "accelerator.json"
    monkeypatch.setattr(accelerator, "CACHE", path)
    monkeypatch.setattr(accelerator, "_boot_id", lambda: BOOT)
    monkeypatch.setattr(accelerator, "find_program", lambda name: Path("/usr/bin") / name, raising=False)
    monkeypatch.setattr(process, "find_program", lambda name: Path("/usr/bin") / name)
    monkeypatch.setattr(accelerator.os, "access", lambda *_: True)
    monkeypatch.setattr(accelerator.os, "geteuid", lambda: 0)
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: True if str(self) == "/dev/kvm" else real(self))
    return path


def tries(monkeypatch: pytest.MonkeyPatch, verdict: Accelerator) -> list[Path | None]:
    made: list[Path | None] = []

    def attempt(kernel: Path | None) -> Accelerator:
        made.append(kernel)
        return verdict

    monkeypatch.setattr(accelerator, "_try", attempt)
    return made


def test_the_verdict_is_tried_once_a_boot(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tries(monkeypatch, Accelerator("tcg", "a test guest hung for 2 s"))
    first = accelerator.find_accelerator()
    real_uid = cache.stat().st_uid
    monkeypatch.setattr(Path, "stat", _as_root(Path.stat)) if real_uid != 0 else None
    assert accelerator.find_accelerator() == first == Accelerator("tcg", "a test guest hung for 2 s")
    assert made == [None]


def test_another_boot_tries_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tries(monkeypatch, Accelerator("tcg", "no"))
    accelerator.find_accelerator()
    monkeypatch.setattr(accelerator, "_boot_id", lambda: "another")
    accelerator.find_accelerator()
    assert len(made) == 2


def test_kvm_without_a_kernel_is_not_believed_for_long(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Firmware may run where Linux hangs, so that verdict is not kept."""
    made = tries(monkeypatch, Accelerator("kvm", "a test guest ran under KVM"))
    accelerator.find_accelerator()
    assert not cache.exists()
    accelerator.find_accelerator(Path("/vmlinuz"))
    assert cache.exists() and made == [None, Path("/vmlinuz")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'{"boot": "11111111-2222"}',
        json.dumps({"boot": BOOT, "name": "kvm", "evil": 1}).encode(),
    ],
)
def test_a_damaged_cache_is_no_verdict(cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    made = tries(monkeypatch, Accelerator("tcg", "tried"))
    cache.parent.mkdir()
    cache.write_bytes(content)
    assert accelerator.find_accelerator().reason == "tried"
    assert made == [None]


@pytest.mark.parametrize("in_the_way", ["run", "accelerator.json"])
def test_a_verdict_that_cannot_be_kept_is_one(cache: Path, monkeypatch: pytest.MonkeyPatch, in_the_way: str) -> None:
    """As where /run is read-only: the next command tries again."""
    made = tries(monkeypatch, Accelerator("tcg", "tried"))
    cache.parent.touch() if in_the_way == "run" else cache.mkdir(parents=True)
    assert [accelerator.find_accelerator().reason for _ in range(2)] == ["tried", "tried"] and made == [None, None]


def test_without_the_right_to_try_it_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tries(monkeypatch, Accelerator("kvm", "never"))
    monkeypatch.setattr(accelerator.os, "access", lambda *_: False)
    found = accelerator.find_accelerator()
    assert (found.name, found.certain, made) == ("tcg", False, [])


def _as_root(real: object) -> object:
    class Facts:
        st_uid = 0

    return lambda self, **_: Facts()


# -- package sources ---------------------------------------------------------------------------------------------------


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> list[list[str]]:
    asked: list[list[str]] = []

    def run(argv: list[str], **_: object) -> Completed:
        asked.append([str(word) for word in argv])
        return Completed(tuple(asked[-1]), 0, text.encode(), b"")

    monkeypatch.setattr(package_sources.process, "run", run)
    return asked


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://mirror.test\nhttp://mirror.test\n", (("mirror.test", 80),)),
        ("https://a.test/x https://b.test:8443/y\n", (("a.test", 443), ("b.test", 8443))),
        ("https://user:word@c.test/simple\n", (("c.test", 443),)),
        ("http://OTHER.test\n", (("other.test", 80),)),
        ("file:///srv/mirror\nhttp://d.test\ncdrom:[x]/ ssh://e.test\n", (("d.test", 80),)),
        ("http://bad_name!.test http://e.test\n", (("e.test", 80),)),
        ("http://f.test:99999 http://[::1 http://g.test:x http://h.test\n", (("h.test", 80),)),
    ],
)
def test_sources_become_names_and_ports(
    monkeypatch: pytest.MonkeyPatch, text: str, wanted: tuple[tuple[str, int], ...]
) -> None:
    asked = answer(monkeypatch, json.dumps({"registry": text}))
    assert package_sources.find_sources("node", (0, 0)).destinations == wanted
    assert asked[0][0] == "npm"


def test_apt_names_what_it_would_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "'http://mirror.test/debian/dists/x/InRelease' mirror.test_InRelease 0 \nReading...\n'https://security.test/y' z 0 \n"
    asked = answer(monkeypatch, said)
    assert package_sources.find_sources("debian", (0, 0)).destinations == (("mirror.test", 80), ("security.test", 443))
    assert asked[0] == ["apt-get", "--print-uris", "update"]


@pytest.mark.parametrize("text", ["", "file:///srv\n", "nonsense\n"])
def test_no_source_is_an_error_and_not_an_empty_list(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    answer(monkeypatch, text)
    with pytest.raises(HostError, match="has no source"):
        package_sources.find_sources("debian", (0, 0))


def test_a_missing_client_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Completed:
        raise ProvisionError("npm is not installed", hint="")

    monkeypatch.setattr(package_sources.process, "run", fail)
    with pytest.raises(HostError, match="npm could not be read"):
        package_sources.find_sources("node", (0, 0))


@pytest.mark.parametrize(
    ("kvm_takes", "emulation_takes", "verdict"),
    [(0.1, 0.5, "kvm"), (9.0, 6.1, "kvm"), (9.0, 0.5, "tcg"), (1e9, 6.0, "tcg"), (1e9, 30.0, "tcg")],
    ids=[
        "quick",
        "slow as all else",
        "slower than emulation by far",
        "hangs on a slow host",
        "hangs and nothing else comes up",
    ],
)
def test_a_slow_host_is_not_taken_for_one_whose_kvm_hangs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kvm_takes: float, emulation_takes: float, verdict: str
) -> None:
    """The verdict holds for the whole boot: a busy minute at the first run made every later one ten times slower."""
    clock = [0.0]

    def boot(words: list[str], expected: int, limit: float, *, accelerator: str = "kvm", cpu: str = "host") -> str:
        takes = kvm_takes if accelerator == "kvm" else emulation_takes
        clock[0] += min(takes, limit)
        return f"a test guest did not end within {limit:g} s" if takes > limit else ""

    monkeypatch.setattr(accelerator, "_boot", boot)
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: clock[0])
    assert accelerator._try(None).name == verdict
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    assert accelerator._try(kernel).name == verdict
    assert clock[0] < 500
