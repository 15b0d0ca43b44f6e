"""From the merged tree to a tar stream: which bytes to copy, which headers to write anew.

Names come in the order of the layers, so that entries which nobody touched are copied in one go;
parents come before their children and files before the hard links to them, which is what
mksquashfs needs (docs/decisions/0011).
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Union

from hpcwrap.image.flatten import Node, merge
from hpcwrap.image.layer import Layer
from hpcwrap.image.tar import (
    BLOCK,
    BLOCKDEV,
    CHARACTER,
    DIRECTORY,
    END,
    FILE,
    HARDLINK,
    Entry,
    Fields,
    LayerError,
    make_header,
    padding,
    read_fields,
)

ZEROS = -1
MAX_UNPACKED = 1 << 40
"""Bytes of an image: stops a sparse file of 8 EiB, which costs its maker one header."""

DEFAULT_DIRECTORY = Fields(0o755, 0, 0, 0, 0)
"""A directory that no entry describes."""


class Range(NamedTuple):
    """Bytes of a layer to copy; of the layer ZEROS: as many zero bytes."""

    layer: int
    start: int
    end: int


Segment = Union[Range, bytes]


class Plan(NamedTuple):
    """What to write to mksquashfs, in order, and what is known beforehand.

    size: bytes of the stream · entries: names in the image · devices: device nodes left out ·
    root: the root directory's numbers, which mksquashfs takes as options only · newest: the
    latest time of any entry, an epoch in s.
    """

    segments: List[Segment]
    size: int
    entries: int
    devices: int
    root: Fields
    newest: int


def flatten(layers: Sequence[Layer]) -> Plan:
    """Merge the layers, lowest first, into one tar stream's plan.

    Raises LayerError, whose message begins with "layer N of M".
    """
    return _Planner(merge(layers), layers).plan()


class _Planner:
    def __init__(self, root: Node, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.segments: List[Segment] = []
        self.entries = 0
        self.devices = 0
        self.root = root
        self.written: Set[Node] = {root}
        nodes = _all_nodes(root)
        self.leaders = _leaders(nodes)
        self.order = self._in_order(nodes)

    def plan(self) -> Plan:
        for node in self.order:
            if node not in self.written:
                self._write(node)
        self.segments.append(END)
        size = sum(map(_length, self.segments))
        if size > MAX_UNPACKED:
            raise LayerError(f"holds {size} bytes when unpacked, more than {MAX_UNPACKED}")
        root = DEFAULT_DIRECTORY if self.root.entry is None else self._fields(self.root)
        newest = max(map(_newest, self.layers), default=0)
        return Plan(self.segments, size, self.entries, self.devices, root, newest)

    def _in_order(self, nodes: List[Node]) -> List[Node]:
        """The nodes in the order of the entries that hold their content, bare directories last.

        A file whose own name is gone is written under a surviving link's, in the file's place.
        """
        at: List[List[Optional[Node]]] = [[None] * len(x.entries) for x in self.layers]
        bare = []
        for node in nodes:
            if node.entry is None:
                bare.append(node)
            else:
                at[node.layer][node.index] = node
        for content, leader in self.leaders.items():
            at[content.layer][content.index] = leader
        return [node for layer in at for node in layer if node is not None] + bare

    def _write(self, node: Node) -> None:
        if node.parent is not None and node.parent not in self.written:
            self._write_parents(node)
        self.written.add(node)
        entry = node.content.entry
        if entry is not None and entry.kind in (CHARACTER, BLOCKDEV):
            self.devices += 1
            return
        self.entries += 1
        if node.entry is None or entry is None:
            self.segments.append(make_header(node.path, DIRECTORY, b"", DEFAULT_DIRECTORY))
        elif node.target is not None and self.leaders.get(node.target) is not node:
            self._write_link(node, node.entry, self.leaders.get(node.target, node.target))
        else:
            self._write_content(node.path, node.content, entry)

    def _write_parents(self, node: Node) -> None:
        missing = []
        parent = node.parent
        while parent is not None and parent not in self.written:
            missing.append(parent)
            parent = parent.parent
        for directory in reversed(missing):
            self._write(directory)

    def _write_link(self, node: Node, entry: Entry, leader: Node) -> None:
        if entry.fields is None and entry.path == node.path and entry.link == leader.path:
            self._copy(node.layer, entry.start, entry.end)
        else:
            self.segments.append(make_header(node.path, HARDLINK, leader.path, DEFAULT_DIRECTORY))

    def _write_content(self, path: bytes, content: Node, entry: Entry) -> None:
        if entry.fields is None and entry.path == path:
            self._copy(content.layer, entry.start, entry.end)
            return
        fields = self._fields(content)
        self.segments.append(make_header(path, entry.kind, entry.link, fields))
        if entry.kind == FILE and fields.pieces is not None:
            self._copy_sparse(content.layer, entry.data, fields)
        elif entry.kind == FILE:
            self._copy(content.layer, entry.data, entry.data + fields.size + padding(fields.size))

    def _copy_sparse(self, layer: int, data: int, fields: Fields) -> None:
        written = 0
        for offset, length in fields.pieces or ():
            self._copy(ZEROS, 0, offset - written)
            self._copy(layer, data, data + length)
            data += length
            written = offset + length
        self._copy(ZEROS, 0, fields.size - written + padding(fields.size))

    def _fields(self, node: Node) -> Fields:
        entry = node.entry
        if entry is None:
            return DEFAULT_DIRECTORY
        if entry.fields is not None:
            return entry.fields
        view = self.layers[node.layer].view
        return read_fields(bytes(view[entry.data - BLOCK : entry.data]))

    def _copy(self, layer: int, start: int, end: int) -> None:
        last = self.segments[-1] if self.segments else b""
        if start == end:
            return
        if isinstance(last, Range) and last.layer == layer != ZEROS and last.end == start:
            self.segments[-1] = Range(layer, last.start, end)
        else:
            self.segments.append(Range(layer, start, end))


def _all_nodes(root: Node) -> List[Node]:
    nodes: List[Node] = []
    pending = [root]
    while pending:
        children = list((pending.pop().children or {}).values())
        nodes += children
        pending += [node for node in children if node.children]
    return nodes


def _leaders(nodes: List[Node]) -> Dict[Node, Node]:
    """For each file whose name is gone while hard links to it live on: the first of these."""
    links = [node for node in nodes if node.target is not None]
    if not links:
        return {}
    alive = set(nodes)
    leaders: Dict[Node, Node] = {}
    for node in sorted(links, key=lambda link: (link.layer, link.index)):
        if node.target is not None and node.target not in alive:
            leaders.setdefault(node.target, node)
    return leaders


def _length(segment: Segment) -> int:
    return len(segment) if isinstance(segment, bytes) else segment.end - segment.start


def _newest(layer: Layer) -> int:
    # A plain entry's time is 11 octal digits: they compare as text, 376 bytes before the body.
    view = layer.view
    told = max((entry.fields.mtime for entry in layer.entries if entry.fields), default=0)
    plain = (
        bytes(view[entry.data - 376 : entry.data - 365])
        for entry in layer.entries
        if entry.fields is None
    )
    return max(told, int(max(plain, default=b"0"), 8))
