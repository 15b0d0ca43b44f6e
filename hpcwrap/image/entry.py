"""One entry of a layer, in every format that tar has had: the slow and whole way to read it.

Formats: POSIX.1-2017 pax(1); GNU tar's manual, "Basic Tar Format"; star(5) for its own prefix.
"""

from __future__ import annotations

from typing import List, Optional, Tuple
from zlib import adler32

from hpcwrap.image.pax import (
    MAX_PAX,
    Records,
    Sparse,
    apply_records,
    is_sparse,
    merged,
    old_sparse,
    parse_pax,
    pax_sparse,
    user_attributes,
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
    MAX_SIZE,
    SYMLINK,
    Entry,
    LayerError,
    clean_path,
    padding,
    read_fields,
    read_number,
    show,
)

GLOBALS = (b"uid", b"gid", b"mtime", b"size", b"path", b"linkpath")
"""Records of a global header that change the entries after it; git writes a comment there."""

MAX_GLOBALS = 1000
MAX_EXTENDED = 4 * MAX_PAX
Globals = List[Tuple[int, Records]]
"""Where global headers stand in a layer, and the records in force from there on."""

_KINDS = frozenset((FILE, HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO))
_ZERO = bytes(BLOCK)


class EntryReader:
    """Reads entries of every format, with the extended headers before them.

    history: the global headers so far; read() adds to it.
    """

    def __init__(self, view: memoryview, history: Globals) -> None:
        self.view = view
        self.history = history
        self.always: Records = history[-1][1] if history else {}

    def read(self, start: int) -> Optional[Entry]:
        """Read the entry whose first header is at `start`; None where the archive ends.

        Raises LayerError.
        """
        records: Records = {}
        position = start
        while True:
            header = bytes(self.view[position : position + BLOCK])
            if header in (b"", _ZERO):
                if records:
                    raise LayerError("ends early, after an extended header")
                return None
            _check(header)
            kind = header[156]
            if kind not in b"LKxXg":
                return self._entry(start, position, header, merged(self.always, records))
            size = read_number(header[124:136])
            body = self._body(position + BLOCK, size)
            if kind == ord("g"):
                self._change_globals(position, parse_pax(body))
            else:
                _extend(kind, body, records)
            position += BLOCK + size + padding(size)
            if position - start > MAX_EXTENDED:
                raise LayerError(f"has an entry with more than {MAX_EXTENDED} bytes of headers")

    def forget(self, position: int) -> None:
        """Unlearn the global headers from a position on: what follows them is not all there."""
        while self.history and self.history[-1][0] >= position:
            self.history.pop()
        self.always = self.history[-1][1] if self.history else {}

    def _body(self, start: int, size: int) -> bytes:
        if not 0 <= size <= MAX_PAX:
            raise LayerError(f"has an extended header of {size} bytes")
        if start + size > len(self.view):
            raise LayerError("ends early, in an extended header")
        return bytes(self.view[start : start + size])

    def _change_globals(self, position: int, told: Records) -> None:
        known = {key: told[key] for key in GLOBALS if key in told}
        if not known:
            return
        self.always = {**self.always, **known}
        self.history.append((position, self.always))
        if len(self.history) > MAX_GLOBALS or any(len(x) > MAX_NAME for x in known.values()):
            raise LayerError("has too many global headers, or too large ones")

    def _entry(self, start: int, position: int, header: bytes, records: Records) -> Entry:
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or _header_name(header)
        kind = _kind(header[156], name)
        fields = apply_records(read_fields(header), records)
        path = clean_path(name)
        link = _clean_link(kind, records.get(b"linkpath") or _text(header[157:257]), path)
        data = position + BLOCK
        if kind != FILE:
            tags = user_attributes(records) if kind == DIRECTORY else ()
            return Entry(path, kind, start, data, data, link, fields._replace(size=0), tags)
        end = data + fields.size + padding(fields.size)
        sparse = self._sparse(header, records, data, fields.size)
        if sparse is not None:
            more = sparse.map_bytes if header[156] == ord("S") else 0
            data, end = data + sparse.map_bytes, end + more
            _check_pieces(sparse, end - data, path)
            fields = fields._replace(size=sparse.size, pieces=sparse.pieces)
        if fields.size < 0 or end > len(self.view):
            raise LayerError(f"ends early, in {show(path)}")
        if fields.size > MAX_SIZE:
            raise LayerError(f"has {show(path)}, of {fields.size} bytes when unpacked")
        return Entry(path, kind, start, data, end, b"", fields, user_attributes(records))

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


def _check(header: bytes) -> None:
    if len(header) < BLOCK:
        raise LayerError("ends early, in a header")
    if not checksum_fits(memoryview(header), 0, read_number(header[148:156])):
        raise LayerError("has a header with a wrong checksum")


def checksum_fits(view: memoryview, position: int, expected: int) -> bool:
    """Whether the header at `position` has the sum `expected`."""
    # The checksum is the sum of the bytes with its own field read as 8 spaces.  The lower half of
    # Adler-32 is 1 plus that sum, modulo 65521 (RFC 1950): C speed for what Python adds in 4 µs.
    first = adler32(view[position : position + 148])
    both = adler32(view[position + 156 : position + BLOCK], first)
    return (both & 0xFFFF) == (1 + expected - 8 * 32) % 65521


def _extend(kind: int, body: bytes, records: Records) -> None:
    if kind in b"LK":
        records[b"path" if kind == ord("L") else b"linkpath"] = body.partition(b"\0")[0]
    else:
        records.update(parse_pax(body))


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
    # star has times behind a shorter prefix.
    prefix_end = 476 if header[508:512] == b"tar\0" else 500
    prefix = _text(header[345:prefix_end]) if is_ustar else b""
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _check_pieces(sparse: Sparse, available: int, path: bytes) -> None:
    if sum(length for _, length in sparse.pieces) > available:
        raise LayerError(f"has less data than the sparse file {show(path)} needs")
