"""Extended headers of tar entries: pax records and the four ways to write a sparse file.

Formats: POSIX.1-2017 pax(1), "pax Extended Header"; GNU tar's manual, "Storing Sparse Files".
"""

from __future__ import annotations

import base64
import binascii
from typing import Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import unquote_to_bytes

from hpcwrap.image.tar import BLOCK, Attributes, Fields, LayerError, Pieces, read_number, tame

MAX_PAX = 1 << 20
MAX_PIECES = 1 << 20

STAR, LIBARCHIVE = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."
"""Two ways to write extended attributes: as they are, and in base 64 under a quoted name."""

MAX_ATTRIBUTE_NAME = 255
MAX_ATTRIBUTE = 1 << 16
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of the kernel: what is longer cannot be read (xattr(7))."""

Records = Dict[bytes, bytes]


class Sparse(NamedTuple):
    """A sparse file: its pieces, its true size, and the bytes of map before its data."""

    pieces: Pieces
    size: int
    map_bytes: int


def parse_pax(data: bytes) -> Records:
    """Parse the records ``<length> <keyword>=<value>\\n`` of one extended header.

    The pairs of GNU.sparse.offset and .numbytes, which repeat, are gathered into one
    GNU.sparse.map, as GNU tar's later format writes them.  Raises LayerError.
    """
    records: Records = {}
    pairs: List[bytes] = []
    position = 0
    while position < len(data):
        keyword, value, position = _record(data, position)
        if keyword in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        else:
            records[keyword] = value
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


def _record(data: bytes, position: int) -> Tuple[bytes, bytes, int]:
    space = data.find(b" ", position, position + 20)
    if space < 0:
        raise LayerError("has a pax header without lengths")
    end = position + decimal(data[position:space])
    keyword, equals, value = data[space + 1 : end].partition(b"=")
    if end > len(data) or not equals or not value.endswith(b"\n"):
        raise LayerError("has a pax header that is damaged")
    return keyword, value[:-1], end


def decimal(text: bytes) -> int:
    """Read a whole number, of a time in seconds the part before the point.

    Raises LayerError.
    """
    whole = text.partition(b".")[0]
    digits = whole[1:] if whole.startswith(b"-") else whole
    if not digits.isdigit() or len(digits) > 20:
        raise LayerError(f"has a pax header with the number {text[:40]!r}")
    return int(whole)


def apply_records(fields: Fields, records: Records) -> Fields:
    """The numbers of a header after the records that overrule it."""

    def value(keyword: bytes, otherwise: int) -> int:
        return decimal(records[keyword]) if keyword in records else otherwise

    if not records:
        return fields
    return tame(
        fields._replace(
            uid=value(b"uid", fields.uid),
            gid=value(b"gid", fields.gid),
            size=value(b"size", fields.size),
            mtime=value(b"mtime", fields.mtime),
        )
    )


def user_attributes(records: Records) -> Attributes:
    """The extended attributes of the namespace ``user``, by name.

    All others stay out: security.capability makes root's programs of files, and what is trusted
    or the system's is not an image's to say.  What the kernel could not read stays out, too.
    """
    found = {}
    for keyword, value in records.items():
        pair = _attribute(keyword, value)
        # tar(1) of the BSDs writes both; star's way needs no decoding.
        if pair is not None and (keyword.startswith(STAR) or pair[0] not in found):
            found[pair[0]] = pair[1]
    return tuple(sorted(found.items()))


def _attribute(keyword: bytes, value: bytes) -> Optional[Tuple[bytes, bytes]]:
    if keyword.startswith(STAR):
        name = keyword[len(STAR) :]
    elif keyword.startswith(LIBARCHIVE):
        name = unquote_to_bytes(keyword[len(LIBARCHIVE) :])
        try:
            value = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except binascii.Error:
            return None
    else:
        return None
    fits = len(b"user.") < len(name) <= MAX_ATTRIBUTE_NAME and len(value) <= MAX_ATTRIBUTE
    odd = b"\0" in name or b"=" in name
    return (name, value) if name.startswith(b"user.") and fits and not odd else None


def merged(always: Records, own: Records) -> Records:
    """An entry's own records over the global ones; an empty value takes a record away (pax(1))."""
    if not always and all(own.values()):
        return own
    both = {**always, **own}
    return {key: value for key, value in both.items() if value or key.startswith(STAR)}


def old_sparse(header: bytes, more: bytes) -> Sparse:
    """Read the map of a GNU sparse entry (type S) from its header and the blocks after it."""
    slots = header[386:482]
    for start in range(0, len(more), BLOCK):
        slots += more[start : start + 504]
    pieces = []
    for at in range(0, len(slots), 24):
        if not slots[at]:
            break
        pieces.append((read_number(slots[at : at + 12]), read_number(slots[at + 12 : at + 24])))
    return _checked(tuple(pieces), read_number(header[483:495]), len(more))


def pax_sparse(records: Records, body: bytes) -> Sparse:
    """Read the map of a sparse file from its pax records (0.0, 0.1) or its body (1.0)."""
    if b"GNU.sparse.map" in records:
        numbers = [decimal(text) for text in records[b"GNU.sparse.map"].split(b",") if text]
        size, map_bytes = decimal(records.get(b"GNU.sparse.size", b"")), 0
    else:
        numbers, map_bytes = _map_in_body(body)
        size = decimal(records.get(b"GNU.sparse.realsize", b""))
    if len(numbers) % 2:
        raise LayerError("has a sparse file with half a map")
    return _checked(tuple(zip(numbers[::2], numbers[1::2])), size, map_bytes)


def is_sparse(records: Records) -> bool:
    """Whether the records make the entry a sparse file."""
    return b"GNU.sparse.map" in records or b"GNU.sparse.major" in records


def _map_in_body(body: bytes) -> Tuple[List[int], int]:
    count = decimal(body[: BLOCK * 2].partition(b"\n")[0])
    if count > MAX_PIECES:
        raise LayerError("has a sparse file of too many pieces")
    lines = body[: (count + 1) * 44].split(b"\n", 2 * count + 1)
    if len(lines) < 2 * count + 2:
        raise LayerError("has a sparse file with half a map")
    used = sum(len(line) + 1 for line in lines[: 2 * count + 1])
    return [decimal(line) for line in lines[1 : 2 * count + 1]], used + -used % BLOCK


def _checked(pieces: Pieces, size: int, map_bytes: int) -> Sparse:
    end = 0
    for offset, length in pieces:
        if offset < end or length < 0:
            raise LayerError("has a sparse file whose pieces overlap")
        end = offset + length
    if end > size or len(pieces) > MAX_PIECES:
        raise LayerError("has a sparse file that is longer than it says")
    return Sparse(pieces, size, map_bytes)
