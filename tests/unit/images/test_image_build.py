"""What a build would run and write; nothing is run here."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.images import bootstrap, build, containers, customize, disk, initrd
from ktrdr_vm.images.apt import AptHost, AptSource
from ktrdr_vm.images.recipe import ContainerRecipe, GuestFile, Recipe, load_recipe
from ktrdr_vm.images.store import Image, ImageStore

HOST = AptHost(
    AptSource("http://me:secret@mirror.example/debian", False),
    AptSource("http://mirror.example/debian-security", True),
    ('Acquire::http::Proxy "http://proxy.example:3142";',),
    Path("/keys.gpg"),
)
SHIPPED = Path(__file__).parents[3] / "images/debian-13-docker.yaml"


def make_argv(security: bool = True) -> tuple[str, ...]:
    return bootstrap.make_mmdebstrap_argv(
        HOST,
        "trixie",
        Path("/x/root"),
        variant="minbase",
        security=security,
        packages=("a", "b"),
        exclude=("/usr/share/doc/*",),
    )


def test_packages_come_from_the_hosts_archive_signed_by_its_keys() -> None:
    argv = make_argv()
    assert "deb [signed-by=/keys.gpg] http://me:secret@mirror.example/debian trixie main" in argv
    assert "deb [signed-by=/keys.gpg] http://mirror.example/debian-security trixie-security main" in argv
    assert "--include=a,b" in argv
    assert "--dpkgopt=path-exclude=/usr/share/doc/*" in argv
    assert '--aptopt=Acquire::http::Proxy "http://proxy.example:3142"' in argv


def test_the_security_suite_is_left_out_where_it_is_not_wanted_or_not_there() -> None:
    assert not any("security" in word for word in make_argv(security=False))
    assert len(bootstrap.make_source_lines(replace(HOST, security=None), "trixie", security=True)) == 1


def test_nothing_a_build_starts_can_outlive_it() -> None:
    assert make_argv()[0] == "unshare"
    assert {"--pid", "--mount", "--kill-child"} <= set(make_argv())
    assert {"--pid", "--mount", "--net", "--kill-child"} <= set(containers._CONTAINED)


def test_the_guests_sources_carry_no_password() -> None:
    text = customize.make_guest_sources(HOST, load_recipe(SHIPPED))
    assert "URIs: http://mirror.example/debian\n" in text
    assert "Suites: trixie-security\n" in text
    assert "secret" not in text


def test_a_container_keeps_command_and_environment() -> None:
    container = ContainerRecipe("base:1", ("python3",), (), ("python3", "-c", 'print("x")'), (("LANG", "C.UTF-8"),))
    assert containers.make_import_options(container) == (
        "--change", 'ENV LANG="C.UTF-8"', "--change", 'CMD ["python3", "-c", "print(\\"x\\")"]',
    )  # fmt: skip


def test_of_dockers_state_only_the_images_stay(tmp_path: Path) -> None:
    for name in ("image", "overlay2", "network", "engine-id", "volumes"):
        (tmp_path / "var/lib/docker" / name).mkdir(parents=True)
    assert [place.name for place in containers.list_state_to_remove(tmp_path)] == ["engine-id", "network", "volumes"]


def test_files_are_laid_over_the_root_with_their_modes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/motd").symlink_to("/run/motd")
    customize.write_files(tmp_path, [GuestFile("etc/motd", b"hi", False), GuestFile("usr/bin/tool", b"#!", True)])
    assert (tmp_path / "etc/motd").read_bytes() == b"hi"
    assert not (tmp_path / "etc/motd").is_symlink()
    assert stat.S_IMODE((tmp_path / "etc/motd").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "usr/bin/tool").stat().st_mode) == 0o755


@pytest.mark.parametrize("relative", ["../escaped", "run/escaped"])
def test_a_file_cannot_be_written_outside_the_root(tmp_path: Path, relative: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (root / "run").symlink_to(tmp_path / "outside")
    with pytest.raises(ProvisionError, match="leads out"):
        customize.write_files(root, [GuestFile(relative, b"x", False)])
    assert list((tmp_path / "outside").iterdir()) == []


def test_stripping_takes_keys_identities_and_build_settings(tmp_path: Path) -> None:
    for relative in (
        "etc/ssh/ssh_host_ed25519_key",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/apt/sources.list",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/lib/apt/lists/x_Packages",
        "var/log/apt/history.log",
        "etc/ssh/sshd_config",
        "usr/bin/true",
    ):
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_text("x")
    (tmp_path / "etc/apt/sources.list.d").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    customize.strip(tmp_path, HOST, load_recipe(SHIPPED))
    left = {str(place.relative_to(tmp_path)) for place in tmp_path.rglob("*") if place.is_file()}
    assert left == {
        "etc/.updated", "etc/apt/sources.list.d/debian.sources", "etc/hostname", "etc/hosts", "etc/machine-id",
        "etc/resolv.conf", "etc/ssh/sshd_config", "usr/bin/true", "var/.updated",
    }  # fmt: skip
    assert (tmp_path / "etc/machine-id").read_text() == ""


DEPENDENCIES = """\
kernel/a/virtio_blk.ko:
kernel/b/overlay.ko: kernel/b/base-lib.ko kernel/b/core.ko
kernel/b/base-lib.ko: kernel/b/core.ko
kernel/b/core.ko:
"""


def test_modules_load_after_what_they_need_and_once() -> None:
    known = initrd.parse_dependencies(DEPENDENCIES)
    assert initrd.order_modules(["overlay", "core", "virtio-blk"], known, frozenset()) == (
        "kernel/b/core.ko", "kernel/b/base-lib.ko", "kernel/b/overlay.ko", "kernel/a/virtio_blk.ko",
    )  # fmt: skip


def test_what_is_built_in_is_not_loaded_and_what_is_unknown_is_an_error() -> None:
    known = initrd.parse_dependencies(DEPENDENCIES)
    assert initrd.order_modules(["ext4", "virtio_blk"], known, frozenset({"ext4"})) == ("kernel/a/virtio_blk.ko",)
    with pytest.raises(ProvisionError, match="no module floppy"):
        initrd.order_modules(["floppy"], known, frozenset())


def test_the_disks_identifiers_follow_the_digest() -> None:
    first, same, other = (disk.make_mke2fs_argv(Path("/r"), Path("/d"), digest) for digest in ("a", "a", "b"))
    assert first == same
    assert first != other


def test_the_hash_is_the_files_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert disk.hash_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_build_has_the_usual_umask_and_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the umask 077, only root could enter folders of the image, and no other build of it would follow."""
    store, recipe, built = ImageStore(tmp_path / "images"), load_recipe(SHIPPED), []

    def make(recipe: Recipe, _host: AptHost, store: ImageStore, directory: Path, _progress: object) -> Image:
        built.append(recipe.name)
        (directory / "folder").mkdir()
        assert (directory / "folder").stat().st_mode & 0o777 == 0o755
        (directory / "folder").rmdir()
        for name in ("disk.raw", "vmlinuz", "initrd"):
            (directory / name).touch()
        fields = {"name": recipe.name, "digest": recipe.digest, "content_digest": "0", "disk_format": "raw"}
        boot = {"boot": "direct", "kernel_args": "", "user": "u", "virtual_size": 1, "manifest": {}}
        return store.commit(directory, {**fields, **boot})

    monkeypatch.setattr(build, "_build", make)
    monkeypatch.setattr(build, "_check_host", lambda _: None)
    monkeypatch.setattr(build, "read_apt_host", lambda: HOST)
    before = os.umask(0o077)
    try:
        first = build.build_image(recipe, store, progress=lambda _: None)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert build.build_image(recipe, store, progress=lambda _: None) == first and built == ["debian-13-docker"]
