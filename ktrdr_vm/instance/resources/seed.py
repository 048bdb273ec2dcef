"""The NoCloud seed, an ISO 9660 image. It holds the guest's SSH host key, so only QEMU's user may read it."""

from __future__ import annotations

import io
import os

from ktrdr_vm.instance.resources.base import Resource

_DOCUMENTS = ("user-data", "meta-data", "network-config")


class Seed(Resource):
    kind = "seed"
    survives_suspend = True

    @property
    def name(self) -> str:
        return str(self.target.paths.seed)

    def exists(self) -> bool:
        return self.target.paths.seed.exists()

    def create(self) -> None:
        path = self.target.paths.seed
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        documents = {name: self.blueprint.documents[name].encode() for name in _DOCUMENTS}
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(make_seed(documents))
        partial.rename(path)

    def verify(self) -> list[str]:
        wanted = {name: self.blueprint.documents[name].encode() for name in _DOCUMENTS}
        found = read_seed(self.target.paths.seed.read_bytes())
        return [f"{name} differs from the plan" for name in _DOCUMENTS if found.get(name) != wanted[name]]

    def remove(self) -> None:
        self.target.paths.seed.unlink(missing_ok=True)
        self.target.paths.seed.with_suffix(".partial").unlink(missing_ok=True)

    def by_hand(self) -> str:
        return f"rm {self.target.paths.seed}"


def make_seed(documents: dict[str, bytes]) -> bytes:
    """An ISO 9660 image with the label that cloud-init expects."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, content) in enumerate(sorted(documents.items())):
        iso.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()


def read_seed(raw: bytes) -> dict[str, bytes]:
    """The documents of an image that `make_seed` made."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(raw))
    found = {}
    for child in iso.list_children(joliet_path="/"):
        name = child.file_identifier().decode("utf-16-be")
        if child.is_file():
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, joliet_path=f"/{name}")
            found[name] = content.getvalue()
    iso.close()
    return found
