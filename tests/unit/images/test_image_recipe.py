"""What a recipe may say, that all its problems are told at once, and what its digest stands for."""

import shutil
from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError, HostError
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.images.recipe import load_recipe

SHIPPED = Path(__file__).parents[3] / "images/debian-13-docker.yaml"

MINIMAL = """\
version: 1
name: small
suite: trixie
disk: 2GiB
user: ktrdr
packages: [systemd, linux-image-cloud-amd64]
files: root
boot:
  kernel_args: [root=/dev/vda, rw]
  modules: [virtio_blk]
  init: init
containers:
  - name: base:1
    packages: [python3]
    command: [python3, "-c", "print(1)"]
    environment: {LANG: C.UTF-8}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "init").write_text("#!/bin/sh\n")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/motd").write_text("hello\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    place = folder / "recipe.yaml"
    place.write_text(text)
    return place


def problems_of(place: Path) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load_recipe(place)
    assert caught.value.hint
    return [str(problem).removeprefix(f"{place}:") for problem in caught.value.problems]


def test_the_shipped_recipe_is_valid() -> None:
    recipe = load_recipe(SHIPPED)
    assert recipe.name == "debian-13-docker"
    assert [container.name for container in recipe.containers] == ["ktrdr-base:13"]
    assert {"docker.io", "docker-compose", "qemu-guest-agent", "cloud-init"} <= set(recipe.packages)


def test_the_shipped_recipe_names_no_mirror_and_no_file_system_identifier() -> None:
    text = SHIPPED.read_text()
    assert "://" not in text
    assert "UUID" not in load_recipe(SHIPPED).kernel_args


def test_a_recipe_is_read_whole(folder: Path) -> None:
    recipe = load_recipe(write(folder, MINIMAL))
    assert recipe.size == 2 << 30
    assert recipe.kernel_args == "root=/dev/vda rw"
    assert recipe.initrd_init == b"#!/bin/sh\n"
    assert [(file.path, file.content, file.executable) for file in recipe.files] == [("etc/motd", b"hello\n", False)]
    assert recipe.containers[0].command == ("python3", "-c", "print(1)")
    assert recipe.containers[0].environment == (("LANG", "C.UTF-8"),)


def test_every_problem_is_told_with_its_place(folder: Path) -> None:
    text = (
        MINIMAL.replace("2GiB", "2 gigabytes")
        .replace("[systemd, ", "[--option, ")
        .replace("init: init", "init: ../secret")
        .replace("LANG:", "lang:")
        .replace("user: ktrdr\n", "colour: red\n")
    )
    found = problems_of(write(folder, text))
    assert [line.split(": ")[0:2] for line in found] == [
        ["1:1", "user"],
        ["4:7", "disk"],
        ["5:1", "colour"],
        ["6:12", "packages[0]"],
        ["11:9", "boot.init"],
        ["16:19", "containers[0].environment.lang"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "name: again\n", "occurs twice"),
        (MINIMAL.replace("[systemd,", "[&a systemd, *a,"), "an anchor"),
        (MINIMAL.replace("name: small", "name: !!python/name:os.system small"), "the tag"),
        (MINIMAL + "units: " + "[" * 41 + "]" * 41, "nested more than"),
        ("just a text", "must be a mapping"),
        ("a: [", "expected"),
        ("x" * 300_000, "larger than"),
        (MINIMAL.replace("version: 1", "version: 2"), "must be 1"),
        (MINIMAL.replace("[systemd,", "[on,"), "must be text"),
        (MINIMAL + "security: maybe\n", "true or false"),
        (MINIMAL.replace("files: root", "files: /etc"), "not a directory in the folder of the recipe"),
        (MINIMAL + MINIMAL[MINIMAL.index("  - name: base") :], "occurs twice"),
    ],
)
def test_what_a_recipe_must_not_be_is_refused(folder: Path, text: str, expected: str) -> None:
    assert any(expected in line for line in problems_of(write(folder, text)))


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "key"
    outside.write_text("private")
    (folder / "init").unlink()
    (folder / "init").symlink_to(outside)
    (folder / "root/etc/key").symlink_to(outside)
    found = problems_of(write(folder, MINIMAL))
    assert any("boot.init" in line for line in found)
    assert any("root/etc/key is not a regular file" in line for line in found)


def test_a_recipe_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_the_digest_ignores_comments_and_the_order_of_keys_and_packages(folder: Path) -> None:
    digest = load_recipe(write(folder, MINIMAL)).digest
    moved = "# a comment\n" + MINIMAL.replace("user: ktrdr\n", "") + "user: ktrdr\n"
    moved = moved.replace("[systemd, linux-image-cloud-amd64]", "[linux-image-cloud-amd64, systemd]")
    assert load_recipe(write(folder, moved)).digest == digest


@pytest.mark.parametrize("change", ["recipe", "file", "mode", "init", "new file", "builder"])
def test_the_digest_covers_everything_that_is_built_from(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write(folder, MINIMAL)
    digest = load_recipe(place).digest
    match change:
        case "recipe":
            write(folder, MINIMAL.replace("rw]", "rw, quiet]"))
        case "file":
            (folder / "root/etc/motd").write_text("other\n")
        case "mode":
            (folder / "root/etc/motd").chmod(0o755)
        case "init":
            (folder / "init").write_text("#!/bin/sh\n:\n")
        case "new file":
            (folder / "root/etc/issue").write_text("")
        case "builder":
            monkeypatch.setattr("ktrdr_vm.images.recipe.BUILDER_VERSION", 999)
    assert load_recipe(place).digest != digest


def test_the_shipped_image_has_ipv6_sockets_and_no_ipv6_address_but_that_of_lo() -> None:
    """`listen [::]` fails with EAFNOSUPPORT in a kernel that was started with ipv6.disable=1."""
    recipe = load_recipe(SHIPPED)
    assert "ipv6.disable=1" not in recipe.kernel_args and "ipv6.disable_ipv6=1" in recipe.kernel_args
    settings = (SHIPPED.parent / "debian-13-docker/root/etc/sysctl.d/90-ktrdr.conf").read_text().splitlines()
    assert [line for line in settings if "ipv6" in line] == ["net.ipv6.conf.lo.disable_ipv6 = 0"]


def test_a_recipe_extends_another_one_of_its_folder(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "images", tmp_path / "images")
    base = load_recipe(tmp_path / "images/debian-13-docker.yaml")
    larger = load_recipe(tmp_path / "images/debian-13-larger.yaml")
    assert larger.name == "debian-13-larger" and larger.size > base.size and larger.digest != base.digest
    assert {"nodejs", "npm"} <= set(larger.packages) and set(base.packages) < set(larger.packages)
    assert [one.partition("==")[0] for one in larger.python] == ["uv"]
    assert (larger.kernel_args, larger.containers, larger.files) == (base.kernel_args, base.containers, base.files)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("extends: ../x.yaml", "not another recipe"),
        ("extends: none.yaml", "not another recipe"),
        ("extends: inner/debian-13-docker.yaml", "not another recipe"),
        ("extends: own.yaml", "not another recipe"),
        ("extends: debian-13-larger.yaml", "extends a recipe itself"),
        ("extends: debian-13-docker.yaml\nuser: root", "is unknown"),
        ("extends: debian-13-docker.yaml\npython: [uv]", "not allowed"),
        ("extends: debian-13-docker.yaml\npython: ['uv==1 --index-url=http://x']", "not allowed"),
    ],
)
def test_an_extension_that_is_not_one_is_refused(tmp_path: Path, change: str, said: str) -> None:
    shutil.copytree(PROJECT / "images", tmp_path / "images")
    # Its files would be those of its own folder.
    shutil.copytree(PROJECT / "images", tmp_path / "images/inner")
    own = tmp_path / "images/own.yaml"
    own.write_text(f"version: 1\nname: own\n{change}\n")
    with pytest.raises(DocumentError, match=said):
        load_recipe(own)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (MINIMAL[MINIMAL.index("boot:") : MINIMAL.index("containers:")], "boot:\n", "boot: must be a mapping"),
        (MINIMAL[MINIMAL.index("boot:") : MINIMAL.index("containers:")], "boot: []\n", "boot: must be a mapping"),
        (MINIMAL[MINIMAL.index("containers:") :], "containers: [null]\n", "containers[0]: must be a mapping"),
        ("files: root\n", "files: root\nunits:\n", "units: must be a mapping"),
    ],
)
def test_a_key_without_a_value_is_not_taken_for_an_empty_one(folder: Path, old: str, new: str, said: str) -> None:
    """An image without kernel arguments and without an init would not boot, and a build takes minutes."""
    [problem] = problems_of(write(folder, MINIMAL.replace(old, new)))
    assert problem.endswith(said)
