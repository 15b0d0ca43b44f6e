"""The index of a layer: where each of its entries lies in the plain tar stream.

Only headers are read.  The quick way, one regular expression an entry, takes the headers that can
be copied to mksquashfs as they are; all others go through entry.EntryReader, and once more when
they are written: so a million entries need no more than a million names and a few columns.
"""

from __future__ import annotations

import mmap
import re
from array import array
from typing import Callable, Dict, List, Optional

from hpcwrap.image.entry import EntryReader, Globals, checksum_fits
from hpcwrap.image.pax import parse_pax
from hpcwrap.image.tar import (
    BLOCK,
    DIRECTORY,
    FILE,
    HARDLINK,
    SYMLINK,
    Entry,
    LayerError,
    attribute_blocks,
    padding,
    show,
)

MAX_INDEX = 1 << 30
"""About how many bytes of memory the index of an image may take: five million entries or more."""

ENTRY_COST, DIRECTORY_COST = 160, 400
"""Bytes of memory of an entry without its name, and of a directory with entries, when merged."""

ANEW, TAGGED = 0x80, 0x40
"""Flags beside an entry's kind: its header is to be written anew, with extended attributes."""

KIND = 0x3F
COUNT_EVERY = 1 << 12
WINDOW = 8 << 20
"""After how many bytes the pages read so far are given back."""

TIMES = frozenset((b"atime", b"ctime", b"mtime"))

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."
"""Prefixes of names with a meaning: OCI image-spec layer.md, "Whiteouts"; the last one is aufs's
own bookkeeping, which Docker skips too."""

_PLAIN = re.compile(
    # name; mode without setuid and setgid; uid; gid; size; mtime below 2^32; checksum; kind; link
    rb"(.{100})(?:000[01][0-7]{3}|00[01][0-7]{3}[ \0])[ \0]"
    rb"([0-7]{6}[0-7 \0])[ \0]([0-7]{6}[0-7 \0])[ \0]([0-7]{11})[ \0]([0-3][0-7]{10})[ \0]"
    rb"([0-7]{6})\0 ([01256])(.{100})"
    # magic; user and group: empty, or root where the numbers are 0 too; device; prefix of ustar
    rb"ustar(?:\x0000|  \0)(?:\0{4}|(root))\0{28}(?:\0{4}|(root))\0{28}[0-7 \0]{16}(.{155})",
    re.DOTALL,
)
_EXTENDED = re.compile(rb".{124}0{8}([0-7]{3})[ \0].{12}([0-7]{6})\0 x", re.DOTALL)
_UNCLEAN = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")
_ZEROS = (b"0000000", b"000000 ", b"000000\0")
_NO_LINK = bytes(100)
_NO_PREFIX = bytes(155)


class Layer:
    """The index of one layer: its entries, in columns.

    names, parents (which of the directories), kinds (with flags), starts (offset of the first
    header), lengths (bytes of body and attributes, as they are written): one item an entry.
    links: targets, by entry.  whiteouts are the paths that the layer removes from the layers
    below, opaque the directories whose older content it hides; neither is among the entries.
    newest: the latest time of any entry, an epoch in s.  cost: about its bytes of memory.
    """

    __slots__ = (
        "cost",
        "directories",
        "globals",
        "kinds",
        "lengths",
        "links",
        "names",
        "newest",
        "opaque",
        "parents",
        "starts",
        "trimmed",
        "view",
        "whiteouts",
    )

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.directories: List[bytes] = []
        self.names: List[bytes] = []
        self.parents = array("I")
        self.kinds = bytearray()
        self.starts = array("Q")
        self.lengths = array("Q")
        self.links: Dict[int, bytes] = {}
        self.whiteouts: List[bytes] = []
        self.opaque: List[bytes] = []
        self.globals: Globals = []
        self.newest = 0
        self.cost = 0
        self.trimmed = 0

    def __len__(self) -> int:
        return len(self.kinds)

    def path(self, index: int) -> bytes:
        """The path that an entry has in this layer."""
        return join(self.directories[self.parents[index]], self.names[index])

    def entry(self, index: int) -> Entry:
        """All that an entry's headers say; reads them again."""
        start = self.starts[index]
        self.trim(start)
        history = [told for told in self.globals if told[0] < start]
        entry = EntryReader(self.view, history).read(start)
        if entry is None:
            raise LayerError("changed while it was read")
        return entry

    def trim(self, position: int) -> None:
        """Give back the pages that were read when reading has gone on far from the last time."""
        if abs(position - self.trimmed) > WINDOW:
            self.trimmed = position
            self.give_back()

    def give_back(self) -> None:
        """Give back the pages of a mapped layer."""
        # They stay in the page cache, but count as this process's memory while they are mapped.
        if isinstance(self.view.obj, mmap.mmap):
            self.view.obj.madvise(mmap.MADV_DONTNEED)


def join(directory: bytes, name: bytes) -> bytes:
    """The path of a name in a directory."""
    return directory + b"/" + name if directory else name


def index_layer(
    view: memoryview,
    on_entries: Optional[Callable[[int], None]] = None,
    room: int = MAX_INDEX,
) -> Layer:
    """Index a plain tar stream; on_entries is told now and then how many entries there are.

    room: how much the index may cost.  Raises LayerError.
    """
    indexer = Indexer(on_entries)
    indexer.extend(view, room, whole=True)
    return indexer.layer


class Indexer:
    """The index of a layer that may still be coming in: `layer`, as far as that is there."""

    def __init__(self, on_entries: Optional[Callable[[int], None]] = None) -> None:
        self.layer = Layer(memoryview(b""))
        self.reader = EntryReader(self.layer.view, self.layer.globals)
        self.view = self.layer.view
        self.position: Optional[int] = 0
        self.counted = 0
        self.known: Dict[bytes, int] = {}
        self.newest = b"0"
        self.on_entries = on_entries

    def extend(self, view: memoryview, room: int = MAX_INDEX, *, whole: bool) -> None:
        """Go on, with a view of the same stream that shows more of it, or all: `whole`.

        room: how much the index may cost.  Raises LayerError, but only for a whole stream: in a
        part, an entry that is not all there looks like a broken one.
        """
        self.layer.view = self.reader.view = self.view = view
        try:
            self._go_on(room, whole)
        except LayerError:
            if whole:
                raise
            self.reader.forget(self.position or 0)
        self.layer.give_back()

    def _go_on(self, room: int, whole: bool) -> None:
        while self.position is not None:
            following = self.take(self.position)
            if following is None and not whole:
                # A stream that ends here is one that goes on, as far as a part of it tells.
                self.reader.forget(self.position)
                return
            self.position = following
            if following is None or len(self.layer) - self.counted >= COUNT_EVERY:
                self._count(room)

    def _count(self, room: int) -> None:
        layer, counted = self.layer, self.counted
        layer.cost += ENTRY_COST * (len(layer) - counted) + sum(map(len, layer.names[counted:]))
        self.counted = len(layer)
        if layer.cost > room:
            raise LayerError(f"has too many files: their names need more than {room >> 20} MiB")
        if self.on_entries:
            self.on_entries(self.counted)

    def take(self, position: int) -> Optional[int]:
        """Take the entry at `position`; where the next one is, None at the end."""
        if position - self.layer.trimmed > WINDOW:
            self.layer.trim(position)
        end = None
        if not self.reader.always:
            end = self._take_plain(position) or self._take_timed(position)
        return end or self._take_any(position)

    def _take_timed(self, position: int) -> Optional[int]:
        """Take an entry whose extended header holds nothing but times: its header says enough."""
        # The most common one by far: some tools write fractions of seconds for every file.
        match = _EXTENDED.match(self.view, position)
        size = int(match[1], 8) if match else BLOCK + 1
        if (
            match is None
            or size > BLOCK
            or not checksum_fits(self.view, position, int(match[2], 8))
        ):
            return None
        start = position + BLOCK
        records = parse_pax(bytes(self.view[start : start + size]))
        if not records.keys() <= TIMES:
            return None
        mtime = records.get(b"mtime", b"").partition(b".")[0]
        return self._take_plain(start + BLOCK, mtime)

    def _take_plain(self, position: int, mtime_told: bytes = b"") -> Optional[int]:
        match = _PLAIN.match(self.view, position)
        if match is None:
            return None
        name, uid, gid, size_text, mtime, total, kind_text, link, user, group, prefix = (
            match.groups()
        )
        if (user and uid not in _ZEROS) or (group and gid not in _ZEROS):
            return None
        if mtime_told and mtime_told != b"%d" % int(mtime, 8):
            return None
        if not checksum_fits(self.view, position, int(total, 8)):
            return None
        kind = kind_text[0]
        path = _plain_path(name.partition(b"\0")[0], kind, prefix, self.view[position + 263])
        target = b"" if link == _NO_LINK else link.partition(b"\0")[0]
        size = int(size_text, 8)
        if kind == HARDLINK and target[:2] == b"./":
            target = target[2:]
        if path is None or (kind != FILE and size) or not _plain_link(kind, target):
            return None
        size += padding(size)
        end = position + BLOCK + size
        if end > len(self.view):
            raise LayerError(f"ends early, in {show(path)}")
        if mtime > self.newest:
            self.newest = mtime
            self.layer.newest = max(self.layer.newest, int(mtime, 8))
        self._add(path, kind, position, size, target)
        return end

    def _take_any(self, position: int) -> Optional[int]:
        entry = self.reader.read(position)
        if entry is None:
            return None
        kind, size = entry.kind | ANEW, 0
        if entry.kind == FILE:
            size = entry.fields.size + padding(entry.fields.size)
        if entry.attributes:
            kind |= TAGGED
            size += len(attribute_blocks(entry.attributes))
        self.layer.newest = max(self.layer.newest, entry.fields.mtime)
        self._add(entry.path, kind, position, size, entry.link)
        return entry.end

    def _add(self, path: bytes, kind: int, start: int, length: int, link: bytes) -> None:
        layer = self.layer
        if b".wh." in path and _is_marker(path):
            _add_marker(layer, path)
            return
        home, _, name = path.rpartition(b"/")
        parent = self.known.get(home)
        if parent is None:
            parent = self.known[home] = len(layer.directories)
            layer.directories.append(home)
            layer.cost += DIRECTORY_COST + 2 * len(home)
        if link:
            layer.links[len(layer.kinds)] = link
            layer.cost += ENTRY_COST + len(link)
        layer.names.append(name)
        layer.parents.append(parent)
        layer.starts.append(start)
        layer.lengths.append(length)
        layer.kinds.append(kind)


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
    layer.cost += DIRECTORY_COST + len(path)
    if name == OPAQUE:
        layer.opaque.append(parent)
        return
    if any(part.startswith(AUFS) for part in path.split(b"/")):
        return
    hidden = name[len(WHITEOUT) :]
    if not name.startswith(WHITEOUT) or hidden in (b"", b".", b".."):
        raise LayerError(f"has a whiteout of no file: {show(path)}")
    layer.whiteouts.append(parent + b"/" + hidden if parent else hidden)
