"""Tar headers: the numbers and names in them, and the ones that we write.

Formats: POSIX.1-2017 pax(1) (ustar, pax) and GNU tar's manual, "Basic Tar Format" and "Storing
Sparse Files".  We write only what mksquashfs 4.5.1's reader takes in every case: ustar headers,
numbers in base 256 where octal ends, and GNU long names (docs/decisions/0011).
"""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional, Tuple

from hpcwrap.errors import UserError

BLOCK = 512
MAX_NAME = 4096
MAX_COMPONENT = 255
MAX_ID = (1 << 32) - 2
MAX_TIME = (1 << 32) - 1

MAX_SIZE = 1 << 40
"""Bytes of a file: stops a sparse one of 8 EiB, which costs its maker one header."""

FILE, HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO = b"0123456"
"""Kinds of an entry: the byte in the header's type field."""

END = bytes(2 * BLOCK)
"""What a tar stream ends with."""

Pieces = Tuple[Tuple[int, int], ...]
Attributes = Tuple[Tuple[bytes, bytes], ...]
"""Extended attributes, name (with its namespace) and value."""

_OCTAL = re.compile(rb" *([0-7]*) *\Z")


class LayerError(UserError):
    """A layer is no tar stream that can be merged; the message is a predicate of "layer N"."""


class Fields(NamedTuple):
    """The numbers of a header; `pieces` are (offset, length) of a sparse file's data."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    pieces: Optional[Pieces] = None


class Entry(NamedTuple):
    """An entry of one layer, with its extended headers applied.

    start, data, end: byte offsets in the layer of its first header, its body and its successor.
    """

    path: bytes
    kind: int
    start: int
    data: int
    end: int
    link: bytes
    fields: Fields
    attributes: Attributes = ()


def read_number(field: bytes) -> int:
    """Read a number field: octal digits, or base 256 with the high bit set.

    Raises LayerError.
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=field[0] == 0xFF)
        return value if field[0] == 0xFF else value ^ (0x80 << 8 * (len(field) - 1))
    digits = _OCTAL.match(field.partition(b"\0")[0])
    if digits is None:
        raise LayerError(f"has a header with the number {field!r}")
    return int(digits[1] or b"0", 8)


def read_fields(header: bytes) -> Fields:
    """Read the numbers of a header of 512 bytes, brought into the range of squashfs."""
    return tame(
        Fields(
            mode=read_number(header[100:108]),
            uid=read_number(header[108:116]),
            gid=read_number(header[116:124]),
            size=read_number(header[124:136]),
            mtime=read_number(header[136:148]),
        )
    )


def tame(fields: Fields) -> Fields:
    """Strip setuid and setgid and the file type from the mode; keep times within 32 bits.

    Raises LayerError for an owner that no Linux system can have.
    """
    if not (0 <= fields.uid <= MAX_ID and 0 <= fields.gid <= MAX_ID):
        raise LayerError(f"has a file of the owner {fields.uid}:{fields.gid}")
    return fields._replace(
        mode=fields.mode & 0o1777,
        mtime=min(max(fields.mtime, 0), MAX_TIME),
    )


def make_header(
    path: bytes, kind: int, link: bytes, fields: Fields, attributes: Attributes = ()
) -> bytes:
    """Make the header blocks of an entry: GNU long name blocks and attributes, then ustar."""
    name = path + b"/" if kind == DIRECTORY else path
    size = fields.size if kind == FILE else 0
    blocks = _long_block(b"L", name) + _long_block(b"K", link) + attribute_blocks(attributes)
    return blocks + _header_block(name, bytes((kind,)), link, fields._replace(size=size))


def header_size(path: bytes, kind: int, link: bytes) -> int:
    """How many bytes make_header() makes, without the attributes."""
    name_size = len(path) + (kind == DIRECTORY)
    return BLOCK + sum(
        BLOCK + length + 1 + padding(length + 1)
        for length in (name_size, len(link))
        if length > 100
    )


def attribute_blocks(attributes: Attributes) -> bytes:
    """A pax header with nothing but extended attributes, in the words of star and GNU tar."""
    if not attributes:
        return b""
    body = b"".join(_record(b"SCHILY.xattr." + name, value) for name, value in attributes)
    header = _header_block(b"././@PaxHeader", b"x", b"", Fields(0, 0, 0, len(body), 0))
    return header + body + bytes(padding(len(body)))


def _record(keyword: bytes, value: bytes) -> bytes:
    # The length at the front counts its own digits.
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def padding(size: int) -> int:
    """How many bytes follow a body of `size` bytes until the next block begins."""
    return -size % BLOCK


def clean_path(name: bytes) -> bytes:
    """The path of a name below the root: no leading slash, no empty, ``.`` or ``..`` part.

    ``..`` is resolved in the text and stops at the root, as Docker does for names in a layer.
    Raises LayerError for a name that no file system can hold.
    """
    parts: List[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    if len(name) > MAX_NAME or any(len(part) > MAX_COMPONENT for part in parts) or b"\0" in name:
        raise LayerError(f"has a name that is too long or has a NUL: {show(name)}")
    return b"/".join(parts)


def show(name: bytes) -> str:
    """A name from a layer, fit for one line on a terminal."""
    text = name.decode("utf-8", "backslashreplace")
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:120])
    return printable + ("…" if len(text) > 120 else "")


def _long_block(kind: bytes, name: bytes) -> bytes:
    if len(name) <= 100:
        return b""
    body = name + b"\0"
    header = _header_block(b"././@LongLink", kind, b"", Fields(0, 0, 0, len(body), 0))
    return header + body + bytes(padding(len(body)))


def _header_block(name: bytes, kind: bytes, link: bytes, fields: Fields) -> bytes:
    # Without user and group names: mksquashfs looks them up on the host and prefers what it finds
    # to the numbers (squashfs-tools 4.5.1, tar.c, read_tar_header).
    block = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            _number(fields.mode, 8),
            _number(fields.uid, 8),
            _number(fields.gid, 8),
            _number(fields.size, 12),
            _number(fields.mtime, 12),
            b"        ",
            kind,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(247),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _number(value: int, width: int) -> bytes:
    if value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")
