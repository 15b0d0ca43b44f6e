"""The index of a layer: where each of its entries lies in the plain tar stream.

Only headers are read.  The quick way, one regular expression an entry, takes the headers that can
be copied to mksquashfs as they are; all others go through `_EntryReader`.
"""

from __future__ import annotations

import re
from typing import Callable, List, NamedTuple, Optional
from zlib import adler32

from hpcwrap.image.pax import (
    MAX_PAX,
    Records,
    Sparse,
    apply_records,
    is_sparse,
    old_sparse,
    parse_pax,
    pax_sparse,
)
from hpcwrap.image.tar import (
    BLOCK,
    BLOCKDEV,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARDLINK,
    MAX_NAME,
    SYMLINK,
    Entry,
    LayerError,
    clean_path,
    padding,
    read_fields,
    read_number,
    show,
)

MAX_ENTRIES = 10_000_000
WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."
"""Prefixes of names with a meaning: OCI image-spec layer.md, "Whiteouts"; the last one is aufs's
own bookkeeping, which Docker skips too."""

GLOBALS = (b"uid", b"gid", b"mtime", b"size", b"path", b"linkpath")
"""Records of a global header that change the entries after it; git writes a comment there."""

_KINDS = frozenset((FILE, HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO))
_ZERO = bytes(BLOCK)
_PLAIN = re.compile(
    # name; mode without setuid and setgid; uid; gid; size; mtime below 2^32; checksum; kind; link
    rb"(.{100})(?:000[01][0-7]{3}|00[01][0-7]{3}[ \0])[ \0]"
    rb"([0-7]{6}[0-7 \0])[ \0]([0-7]{6}[0-7 \0])[ \0]([0-7]{11})[ \0][0-3][0-7]{10}[ \0]"
    rb"([0-7]{6})\0 ([01256])(.{100})"
    # magic; user and group: empty, or root where the numbers are 0 too; prefix only in ustar
    rb"ustar(?:\x0000|  \0)(?:\0{4}|(root))\0{28}(?:\0{4}|(root))\0{28}.{16}(.{155})",
    re.DOTALL,
)
_UNCLEAN = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")
_ZEROS = (b"0000000", b"000000 ", b"000000\0")
_NO_LINK = bytes(100)
_NO_PREFIX = bytes(155)


class Layer(NamedTuple):
    """The index of one layer.

    whiteouts are the paths that it removes from the layers below, opaque the directories whose
    older content it hides; neither is among the entries.
    """

    view: memoryview
    entries: List[Entry]
    whiteouts: List[bytes]
    opaque: List[bytes]


def index_layer(view: memoryview, on_entries: Optional[Callable[[int], None]] = None) -> Layer:
    """Index a plain tar stream; on_entries is told now and then how many entries there are.

    Raises LayerError.
    """
    layer = Layer(view, [], [], [])
    reader = _EntryReader(view)
    position = 0
    entries = layer.entries
    while True:
        entry = None if reader.always else _plain_entry(view, position)
        entry = entry or reader.read(position)
        if entry is None:
            return layer
        position = entry.end
        if b".wh." in entry.path and _is_marker(entry.path):
            _add_marker(layer, entry.path)
            continue
        entries.append(entry)
        if not len(entries) & 0x3FFF:
            _count(len(entries), on_entries)


def _count(entries: int, on_entries: Optional[Callable[[int], None]]) -> None:
    if entries > MAX_ENTRIES:
        raise LayerError(f"has more than {MAX_ENTRIES} entries")
    if on_entries:
        on_entries(entries)


def _plain_entry(view: memoryview, position: int) -> Optional[Entry]:
    match = _PLAIN.match(view, position)
    if match is None:
        return None
    name, uid, gid, size_text, checksum, kind_text, link, user, group, prefix = match.groups()
    if (user and uid not in _ZEROS) or (group and gid not in _ZEROS):
        return None
    if not _checksum_fits(view, position, int(checksum, 8)):
        return None
    kind = kind_text[0]
    path = _plain_path(name.partition(b"\0")[0], kind, prefix, view[position + 263])
    target = b"" if link == _NO_LINK else link.partition(b"\0")[0]
    size = int(size_text, 8)
    if kind == HARDLINK and target[:2] == b"./":
        target = target[2:]
    if path is None or (kind != FILE and size) or not _plain_link(kind, target):
        return None
    data = position + BLOCK
    end = data + size + padding(size)
    if end > len(view):
        raise LayerError(f"ends early, in {show(path)}")
    return Entry(path, kind, position, data, end, target, None)


def _checksum_fits(view: memoryview, position: int, expected: int) -> bool:
    # The checksum is the sum of the bytes with its own field read as 8 spaces.  The lower half of
    # Adler-32 is 1 plus that sum, modulo 65521 (RFC 1950): C speed for what Python adds in 4 µs.
    first = adler32(view[position : position + 148])
    both = adler32(view[position + 156 : position + BLOCK], first)
    return (both & 0xFFFF) == (1 + expected - 8 * 32) % 65521


def _plain_path(name: bytes, kind: int, prefix: bytes, magic: int) -> Optional[bytes]:
    if prefix != _NO_PREFIX:
        prefix = prefix.partition(b"\0")[0]
        # GNU's header has times where ustar has the prefix; mksquashfs takes them for a name.
        if magic != 0x30 or prefix in (b"", b"."):
            return None
        name = prefix + b"/" + name
    path = name[2:] if name[:2] == b"./" else name
    if kind == DIRECTORY and path[-1:] == b"/":
        path = path[:-1]
    if path[:1] in (b"", b".", b"/") or path[-1:] == b"/" or b"//" in path or b"/." in path:
        return None if _UNCLEAN.search(path) else path
    return path


def _plain_link(kind: int, target: bytes) -> bool:
    if kind == HARDLINK:
        return bool(target) and not _UNCLEAN.search(target)
    return bool(target) == (kind == SYMLINK)


def _is_marker(path: bytes) -> bool:
    return any(part.startswith(WHITEOUT) for part in path.split(b"/"))


def _add_marker(layer: Layer, path: bytes) -> None:
    parent, _, name = path.rpartition(b"/")
    if name == OPAQUE:
        layer.opaque.append(parent)
        return
    if any(part.startswith(AUFS) for part in path.split(b"/")):
        return
    hidden = name[len(WHITEOUT) :]
    if not name.startswith(WHITEOUT) or hidden in (b"", b".", b".."):
        raise LayerError(f"has a whiteout of no file: {show(path)}")
    layer.whiteouts.append(parent + b"/" + hidden if parent else hidden)


class _EntryReader:
    """Reads entries of every format, with the extended headers before them."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.always: Records = {}

    def read(self, start: int) -> Optional[Entry]:
        """Read the entry whose first header is at `start`; None where the archive ends."""
        records: Records = {}
        position = start
        while True:
            header = bytes(self.view[position : position + BLOCK])
            if header in (b"", _ZERO):
                if records:
                    raise LayerError("ends early, after an extended header")
                return None
            self._check(header)
            kind = header[156]
            if kind not in b"LKxXg":
                return self._entry(start, position, header, {**self.always, **records})
            size = read_number(header[124:136])
            self._extend(kind, self._body(position + BLOCK, size), records)
            position += BLOCK + size + padding(size)

    def _check(self, header: bytes) -> None:
        if len(header) < BLOCK:
            raise LayerError("ends early, in a header")
        stored = read_number(header[148:156])
        if not _checksum_fits(memoryview(header), 0, stored):
            raise LayerError("has a header with a wrong checksum")

    def _body(self, start: int, size: int) -> bytes:
        if not 0 <= size <= MAX_PAX:
            raise LayerError(f"has an extended header of {size} bytes")
        if start + size > len(self.view):
            raise LayerError("ends early, in an extended header")
        return bytes(self.view[start : start + size])

    def _extend(self, kind: int, body: bytes, records: Records) -> None:
        if kind in b"LK":
            name = body.partition(b"\0")[0]
            records[b"path" if kind == ord("L") else b"linkpath"] = name
        elif kind == ord("g"):
            told = parse_pax(body)
            self.always.update((key, told[key]) for key in GLOBALS if key in told)
        else:
            records.update(parse_pax(body))

    def _entry(self, start: int, position: int, header: bytes, records: Records) -> Entry:
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or _header_name(header)
        kind = _kind(header[156], name)
        fields = apply_records(read_fields(header), records)
        path = clean_path(name)
        link = _clean_link(kind, records.get(b"linkpath") or _text(header[157:257]), path)
        data = position + BLOCK
        if kind != FILE:
            return Entry(path, kind, start, data, data, link, fields._replace(size=0))
        end = data + fields.size + padding(fields.size)
        sparse = self._sparse(header, records, data, fields.size)
        if sparse is not None:
            more = sparse.map_bytes if header[156] == ord("S") else 0
            data, end = data + sparse.map_bytes, end + more
            _check_pieces(sparse, end - data, path)
            fields = fields._replace(size=sparse.size, pieces=sparse.pieces)
        if fields.size < 0 or end > len(self.view):
            raise LayerError(f"ends early, in {show(path)}")
        return Entry(path, kind, start, data, end, b"", fields)

    def _sparse(self, header: bytes, records: Records, data: int, size: int) -> Optional[Sparse]:
        if header[156] == ord("S"):
            return old_sparse(header, self._sparse_blocks(header, data))
        if is_sparse(records):
            return pax_sparse(records, bytes(self.view[data : data + min(size, MAX_PAX)]))
        return None

    def _sparse_blocks(self, header: bytes, position: int) -> bytes:
        more = b""
        extended = header[482]
        while extended:
            block = self._body(position + len(more), BLOCK)
            more += block
            extended = block[504]
            if len(more) > MAX_PAX:
                raise LayerError("has a sparse file of too many pieces")
        return more


def _kind(byte: int, name: bytes) -> int:
    # POSIX: NUL is the old regular file, 7 a contiguous one.  V7 marked directories by a slash.
    if byte in b"\x007S":
        byte = FILE
    if byte == FILE and name.endswith(b"/"):
        return DIRECTORY
    if byte not in _KINDS:
        raise LayerError(f"has {show(name)}, an entry of unknown type {chr(byte)!r}")
    return byte


def _clean_link(kind: int, link: bytes, path: bytes) -> bytes:
    if kind == HARDLINK:
        return clean_path(link)
    if kind != SYMLINK:
        return b""
    if not link or len(link) > MAX_NAME or b"\0" in link:
        raise LayerError(f"has the symbolic link {show(path)} to nowhere")
    return link


def _header_name(header: bytes) -> bytes:
    name = _text(header[:100])
    is_ustar = header[257:263] == b"ustar\0"
    prefix = _text(header[345:500]) if is_ustar else b""
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _check_pieces(sparse: Sparse, available: int, path: bytes) -> None:
    if sum(length for _, length in sparse.pieces) > available:
        raise LayerError(f"has less data than the sparse file {show(path)} needs")
