"""From the merged tree to a tar stream: which bytes to copy, which headers to write anew.

Names come in the order of the layers, so that entries which nobody touched are copied in one go;
parents come before their children and files before the hard links to them, which is what
mksquashfs needs (docs/decisions/0011).
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

from hpcwrap.image.flatten import INDEX, NOBODY, SHIFT, Directory, Tree, merge
from hpcwrap.image.layer import ANEW, KIND, TAGGED, Layer, join
from hpcwrap.image.tar import (
    BLOCK,
    BLOCKDEV,
    CHARACTER,
    DIRECTORY,
    END,
    FILE,
    HARDLINK,
    MAX_NAME,
    MAX_SIZE,
    SYMLINK,
    Entry,
    Fields,
    LayerError,
    header_size,
    make_header,
    padding,
    show,
)

ZEROS = -1
MAX_UNPACKED = MAX_SIZE
"""Bytes of an image."""

FREE, RATIO = 16 << 30, 200
"""An image may grow to this many bytes, or to this many times its compressed size: zeros shrink to
a thousandth and less, and a megabyte of them must not fill the store.  Files of operating systems
shrink to a third, headers of empty files to a fiftieth."""

DEFAULT_DIRECTORY = Fields(0o755, 0, 0, 0, 0)
"""A directory that no entry describes."""


class Range(NamedTuple):
    """Bytes of a layer to copy; of the layer ZEROS: as many zero bytes."""

    layer: int
    start: int
    end: int


Segment = Union[Range, bytes]


class _Step(NamedTuple):
    """An entry to write anew: under which path, which entry of the layers (NOBODY: none).

    hard: the path of the file that it is a hard link to.
    """

    path: bytes
    entry: int
    hard: bytes = b""


class Plan(NamedTuple):
    """What to write to mksquashfs, in order, and what is known beforehand.

    size: bytes of the stream · entries: names in the image · devices: device nodes left out ·
    tagged: whether extended attributes are in it · root: the root directory's numbers, which
    mksquashfs takes as options only · newest: the latest time of any entry, an epoch in s ·
    largest: bytes of the largest file in any layer.
    """

    segments: Stream
    size: int
    entries: int
    devices: int
    tagged: bool
    root: Fields
    newest: int
    largest: int


def check_size(unpacked: int, compressed: int) -> None:
    """Raise LayerError, whose message is a sentence on the image, for an image of hot air."""
    if unpacked > most_unpacked(compressed):
        raise LayerError(f"its {compressed} bytes become {unpacked} or more when unpacked")


def most_unpacked(compressed: int) -> int:
    """Bytes that so many compressed ones may become."""
    return min(max(FREE, RATIO * compressed), MAX_UNPACKED)


def flatten(layers: Sequence[Layer]) -> Plan:
    """Merge the layers, lowest first, into one tar stream's plan.

    Raises LayerError, whose message begins with "layer N of M" when it is about one of them.
    """
    tree = merge(layers)
    stream = Stream(tree)
    size = stream.size()
    if size > MAX_UNPACKED:
        raise LayerError(f"it becomes {size} bytes when unpacked, more than {MAX_UNPACKED}")
    root = tree.root.entry
    return Plan(
        segments=stream,
        size=size,
        entries=stream.entries,
        devices=stream.devices,
        tagged=any(kind & TAGGED for layer in layers for kind in set(layer.kinds)),
        root=DEFAULT_DIRECTORY if root == NOBODY else stream.entry(root).fields,
        newest=max((layer.newest for layer in layers), default=0),
        largest=max((max(layer.lengths, default=0) for layer in layers), default=0),
    )


class Stream:
    """The merged tar stream: iterate over its segments, which are made as they are needed.

    Headers that have to be written anew are read a second time for it, and none of them is kept:
    an image of a million such entries needs no memory for them.
    """

    def __init__(self, tree: Tree) -> None:
        self.layers = tree.layers
        self.tree = tree
        self.entries = 0
        self.devices = 0
        # For each entry where it is: a directory itself, of anything else the directory it is in.
        self.places: List[List[Optional[Directory]]] = [[None] * len(x) for x in tree.layers]
        self.bare: List[Directory] = []
        self._place()
        self.leaders = self._find_leaders()

    def __iter__(self) -> Iterator[Segment]:
        for step in self._steps():
            if isinstance(step, Range):
                yield step
            else:
                yield from self._segments(step)
        yield END

    def size(self) -> int:
        """How many bytes the stream has."""
        return sum(map(self._size, self._steps())) + len(END)

    def entry(self, entry: int) -> Entry:
        """All about an entry."""
        return self.layers[entry >> SHIFT].entry(entry & INDEX)

    def _place(self) -> None:
        pending = [self.tree.root]
        while pending:
            directory = pending.pop()
            for child in directory.children.values():
                if isinstance(child, int):
                    self._place_entry(child, directory)
                    continue
                self.entries += 1
                pending.append(child)
                if child.entry == NOBODY:
                    self.bare.append(child)
                else:
                    self.places[child.entry >> SHIFT][child.entry & INDEX] = child

    def _place_entry(self, entry: int, directory: Directory) -> None:
        if self.tree.kind(self.tree.content(entry)) in (CHARACTER, BLOCKDEV):
            self.devices += 1
        else:
            self.entries += 1
            self.places[entry >> SHIFT][entry & INDEX] = directory

    def _find_leaders(self) -> Dict[int, int]:
        """For each file whose name is gone while hard links to it live on: the first of these."""
        leaders: Dict[int, int] = {}
        for link, content in sorted(self.tree.targets.items()):
            if self._home(link) is not None and self._home(content) is None:
                leaders.setdefault(content, link)
        return leaders

    def _home(self, entry: int) -> Optional[Directory]:
        return self.places[entry >> SHIFT][entry & INDEX]

    def _path(self, entry: int) -> bytes:
        """The path of an entry that is no directory, or of the link that has taken its place."""
        entry = self.leaders.get(entry, entry)
        home = self._home(entry)
        path = join(home.path if home else b"", self.layers[entry >> SHIFT].names[entry & INDEX])
        if len(path) > MAX_NAME:
            raise LayerError(f"has files nested too deeply: {show(path)}")
        return path

    def _steps(self) -> Iterator[Union[Range, _Step]]:
        """What to write, in the order of the layers' entries, bare directories last.

        A file whose own name is gone is written under a surviving link's, in the file's place.
        """
        mark = object()
        self.tree.root.seen = mark
        for number in range(len(self.layers)):
            yield from self._layer_steps(number, mark)
        for directory in self.bare:
            yield from _unseen(directory, mark)

    def _layer_steps(self, number: int, mark: object) -> Iterator[Union[Range, _Step]]:
        layer = self.layers[number]
        start = end = 0
        for index, place in enumerate(self.places[number]):
            if place is None and not self.leaders:
                continue
            if place is not None and self._is_as_it_was(layer, number, index, place, mark):
                if layer.starts[index] != end:
                    if start != end:
                        yield Range(number, start, end)
                    start = end = layer.starts[index]
                end += BLOCK + layer.lengths[index]
                continue
            if start != end:
                yield Range(number, start, end)
                start = end = 0
            yield from self._steps_anew(number << SHIFT | index, place, mark)
        if start != end:
            yield Range(number, start, end)
        layer.give_back()

    def _is_as_it_was(
        self, layer: Layer, number: int, index: int, place: Directory, mark: object
    ) -> bool:
        """Whether an entry can be copied with its header, here and now; marks a directory."""
        kind = layer.kinds[index]
        if kind & ANEW:
            return False
        home = place if kind != DIRECTORY else place.parent
        if home is None or home.seen is not mark:
            return False
        if home.path != layer.directories[layer.parents[index]]:
            return False
        if kind == DIRECTORY:
            if place.seen is mark:
                return False
            place.seen = mark
        elif kind == HARDLINK:
            content = self.tree.content(number << SHIFT | index)
            return content not in self.leaders and self._path(content) == layer.links[index]
        return True

    def _steps_anew(self, entry: int, place: Optional[Directory], mark: object) -> Iterator[_Step]:
        if place is None:
            leader = self.leaders.get(entry)
            place = None if leader is None else self._home(leader)
            if place is not None:
                yield from _unseen(place, mark)
                yield _Step(self._path(entry), entry)
            return
        yield from _unseen(place, mark)
        kind = self.tree.kind(entry)
        if kind == HARDLINK:
            content = self.tree.content(entry)
            if self.leaders.get(content) != entry:
                yield _Step(self._path(entry), entry, self._path(content))
        elif kind != DIRECTORY:
            yield _Step(self._path(entry), entry)

    def _size(self, step: Union[Range, _Step]) -> int:
        if isinstance(step, Range):
            return step.end - step.start
        if step.hard:
            return header_size(step.path, HARDLINK, step.hard)
        if step.entry == NOBODY:
            return header_size(step.path, DIRECTORY, b"")
        layer, index = self.layers[step.entry >> SHIFT], step.entry & INDEX
        kind = layer.kinds[index] & KIND
        link = layer.links[index] if kind == SYMLINK else b""
        return header_size(step.path, kind, link) + layer.lengths[index]

    def _segments(self, step: _Step) -> Iterator[Segment]:
        if step.hard:
            yield make_header(step.path, HARDLINK, step.hard, DEFAULT_DIRECTORY)
            return
        if step.entry == NOBODY:
            yield make_header(step.path, DIRECTORY, b"", DEFAULT_DIRECTORY)
            return
        entry = self.entry(step.entry)
        yield make_header(step.path, entry.kind, entry.link, entry.fields, entry.attributes)
        if entry.kind == FILE:
            yield from _body(step.entry >> SHIFT, entry.data, entry.fields)


def _unseen(directory: Directory, mark: object) -> Iterator[_Step]:
    """A directory and those above it, topmost first, as far as they have not been written."""
    missing = []
    above: Optional[Directory] = directory
    while above is not None and above.seen is not mark:
        missing.append(above)
        above = above.parent
    for each in reversed(missing):
        each.seen = mark
        yield _Step(each.path, each.entry)


def _body(layer: int, data: int, fields: Fields) -> Iterator[Range]:
    if fields.pieces is None:
        if fields.size:
            yield Range(layer, data, data + fields.size + padding(fields.size))
        return
    written = 0
    for offset, length in fields.pieces:
        yield from _zeros(offset - written)
        if length:
            yield Range(layer, data, data + length)
        data += length
        written = offset + length
    yield from _zeros(fields.size - written + padding(fields.size))


def _zeros(length: int) -> Iterator[Range]:
    if length:
        yield Range(ZEROS, 0, length)
