"""SIF files for tests, written field by field (sif project, pkg/sif/sif.go), so that they may be
broken.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Sequence

LAUNCH = b"#!/usr/bin/env run-singularity\n\0"
DESCRIPTORS = 4096
DATA = 32768
TOTAL = 48

PARTITION, JSON, OCI_INDEX = 0x4004, 0x4006, 0x400A
SQUASHFS, EXT3, ENCRYPTED = 1, 2, 5
SYSTEM, PRIMARY = 1, 2
CODES = {"x86_64": b"02", "aarch64": b"04", "ppc64le": b"06"}


class Thing(NamedTuple):
    """An object in the file; extra is a partition's part of its descriptor."""

    kind: int
    content: bytes
    name: str = ""
    extra: bytes = b""


def partition(
    content: bytes, machine: str = "x86_64", *, form: int = SQUASHFS, role: int = PRIMARY
) -> Thing:
    """A file system in the file, for a machine (uname's word)."""
    extra = struct.pack("<ii3s", form, role, CODES.get(machine, machine.encode()))
    return Thing(PARTITION, content, "fs.img", extra)


def make_sif(things: Sequence[Thing], version: bytes = b"01") -> bytes:
    """The file: header, descriptors, and the objects at multiples of 4096."""
    offset, table, data = DATA, b"", b""
    for number, thing in enumerate(things, 1):
        table += _descriptor(thing, number, offset)
        body = thing.content + bytes(-len(thing.content) % 4096)
        data += body
        offset += len(body)
    head = struct.pack(
        "<32s10s3s3s16s8q",
        *(LAUNCH, b"SIF_MAGIC", version, b"02", bytes(16)),
        *(0, 0, TOTAL - len(things), TOTAL, DESCRIPTORS, TOTAL * 585, DATA, len(data)),
    )
    table = table.ljust(TOTAL * 585, b"\0")
    return (head.ljust(DESCRIPTORS, b"\0") + table).ljust(DATA, b"\0") + data


def _descriptor(thing: Thing, number: int, offset: int) -> bytes:
    return struct.pack(
        "<i?III7q128s384s",
        *(thing.kind, True, number, 0xF0000001, 0, offset, len(thing.content)),
        *(len(thing.content), 0, 0, 0, 0, thing.name.encode(), thing.extra),
    )
