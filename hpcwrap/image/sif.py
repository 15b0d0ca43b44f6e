"""SIF: where in a file of Apptainer or Singularity the root file system lies.

The format is that of the sif project (pkg/sif/sif.go): a header of 128 bytes, a table of
descriptors of 585 bytes each, and the objects that these describe, all numbers little-endian.
Signatures are not looked at.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Iterator, List, NamedTuple, Optional

from hpcwrap.errors import UserError

MAGIC = b"SIF_MAGIC\0"
MAGIC_AT = 32
"""The line that makes the file executable comes first."""
VERSION = "01"

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?III7q128s384s")
_PARTITION = struct.Struct("<ii3s")
MAX_DESCRIPTORS = 4096

PARTITION = 0x4004
JSON = 0x4006
OCI_INDEX = 0x400A
"""Kinds of objects: a file system; metadata; the index of the OCI images that the file holds."""

PRIMARY = 2
"""The kind of the partition that is the container's root."""
SQUASHFS = 1
FILE_SYSTEMS = {2: "ext3", 3: "an archive", 4: "raw data", 5: "encrypted", 6: "encrypted"}

MACHINES = {
    "01": "i686",
    "02": "x86_64",
    "03": "armv7l",
    "04": "aarch64",
    "05": "ppc64",
    "06": "ppc64le",
    "07": "mips",
    "08": "mipsle",
    "09": "mips64",
    "10": "mips64le",
    "11": "s390x",
    "12": "riscv64",
}
"""Codes of architectures → the kernel's words (uname(2))."""

CONFIG = "oci-config.json"
"""The object in which Apptainer keeps the configuration of the image that the file was made of."""


class Part(NamedTuple):
    """An object in the file: offset and size in bytes."""

    kind: int
    offset: int
    size: int
    name: str
    extra: bytes


class Sif(NamedTuple):
    """What concerns us in a file: the squashfs of the root, and the image's configuration."""

    root: Part
    config: Optional[Part]


def is_sif(head: bytes) -> bool:
    """Whether a file that begins like this is a SIF."""
    return head[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC


def parse_sif(file: BinaryIO, machine: Optional[str] = None) -> Sif:
    """Find root and configuration in a SIF, for a machine (this one; words of uname(2)).

    Raises UserError, whose message is a predicate of the image.
    """
    parts = _parts(file)
    root = _root(parts)
    file_system, _, code = _PARTITION.unpack_from(root.extra)
    if file_system != SQUASHFS:
        kind = FILE_SYSTEMS.get(file_system, "of an unknown kind")
        raise UserError(
            f"has a root file system that is not squashfs but {kind}",
            "build it anew with apptainer build, without --encrypt and from no ext3 image",
        )
    _check_machine(_text(code), machine or os.uname().machine)
    configs = [part for part in parts if part.kind == JSON and part.name == CONFIG]
    return Sif(root, configs[0] if configs else None)


def _parts(file: BinaryIO) -> List[Part]:
    size = os.fstat(file.fileno()).st_size
    head = os.pread(file.fileno(), _HEADER.size, 0)
    if len(head) < _HEADER.size or not is_sif(head):
        raise UserError("is no SIF file")
    _, _, version, _, _, _, _, _, count, offset, *_ = _HEADER.unpack(head)
    if _text(version) != VERSION:
        raise UserError(f"is a SIF file of the unknown version {_text(version)!r}")
    if not 0 <= count <= MAX_DESCRIPTORS or not 0 <= offset <= size:
        raise UserError("is a damaged SIF file: its table of objects lies outside of it")
    table = os.pread(file.fileno(), count * _DESCRIPTOR.size, offset)
    if len(table) < count * _DESCRIPTOR.size:
        raise UserError("is a damaged SIF file: it ends in its table of objects")
    return list(_parse_table(table, size))


def _parse_table(table: bytes, size: int) -> Iterator[Part]:
    for fields in _DESCRIPTOR.iter_unpack(table):
        kind, used, _, _, _, offset, length, *_, name, extra = fields
        if not used:
            continue
        if offset < 0 or length < 0 or offset + length > size:
            raise UserError("is a damaged SIF file: it ends before its objects do")
        yield Part(kind, offset, length, _text(name), extra)


def _root(parts: List[Part]) -> Part:
    partitions = [part for part in parts if part.kind == PARTITION]
    roots = [part for part in partitions if _PARTITION.unpack_from(part.extra)[1] == PRIMARY]
    if len(roots) == 1:
        return roots[0]
    if any(part.kind == OCI_INDEX for part in parts):
        raise UserError(
            "is an OCI-SIF file of SingularityCE, which hpcwrap does not read",
            "pull it with singularity pull --no-oci, or pull it from its registry",
        )
    raise UserError("is a SIF file without a root file system")


def _check_machine(code: str, machine: str) -> None:
    there = MACHINES.get(code, "")
    if there != machine and code != "00":
        raise UserError(
            f"is not for this machine ({machine})", f"it is there for {there or 'an unknown one'}"
        )


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")
