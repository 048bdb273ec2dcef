"""Format and size of a disk image, from its first bytes, so that no program probes the format of an untrusted file as
root."""

from __future__ import annotations

import struct
from pathlib import Path

from ktrdr_vm.errors import ProvisionError

MAX_VIRTUAL = 1 << 40
_HINT = "use an image that is a single raw or qcow2 file"
_QCOW2 = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")
# Incompatible features without an effect on the location of data: dirty, another compression, extended L2 entries.
_KNOWN_FEATURES = 0b11001
_EXTERNAL_DATA = 0b00100
# First bytes of other formats, which would not boot as raw images.
_OTHERS = {
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"QED\x00": "qed",
    b"<<< ": "vdi",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"LUKS\xba\xbe": "luks",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


def read_format(path: Path, where: str) -> tuple[str, int]:
    """Format and virtual size. ProvisionError if it is neither raw nor qcow2, or refers to another file."""
    with path.open("rb") as file:
        head = file.read(512)
    return parse_format(head, path.stat().st_size, where)


def parse_format(head: bytes, length: int, where: str) -> tuple[str, int]:
    """The same of the first 512 bytes of a file that is `length` bytes long."""
    if head.startswith(_QCOW2):
        disk_format, size = "qcow2", _parse_qcow2(head, where)
    else:
        other = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), "")
        if other:
            raise ProvisionError(f"the image is {other}, which is not supported", where=where, hint=_HINT)
        disk_format, size = "raw", length
    if not 0 < size <= MAX_VIRTUAL:
        raise ProvisionError(f"the virtual size of the image, {size} bytes, is not plausible", where=where, hint=_HINT)
    return disk_format, size


def _parse_qcow2(head: bytes, where: str) -> int:
    if len(head) < 104:
        raise ProvisionError("the image ends within its header", where=where, hint=_HINT)
    _, version, backing, backing_length, _, size = _HEADER.unpack_from(head)
    if version not in (2, 3):
        raise ProvisionError(f"the image is qcow2 version {version}, which is not supported", where=where, hint=_HINT)
    if backing or backing_length:
        raise ProvisionError("the image is an overlay: it has a backing file", where=where, hint=_HINT)
    (features,) = struct.unpack_from(">Q", head, 72) if version == 3 else (0,)
    if features & _EXTERNAL_DATA:
        raise ProvisionError("the image has an external data file", where=where, hint=_HINT)
    if features & ~_KNOWN_FEATURES:
        raise ProvisionError("the image has unknown features, or is marked as corrupt", where=where, hint=_HINT)
    return int(size)
