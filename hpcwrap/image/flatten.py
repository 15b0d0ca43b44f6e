"""Merge layers: simulate their extraction on headers alone.

A layer is applied in two phases, its whiteouts to what the layers below left, then its entries in
their order (OCI image-spec layer.md, "Applying Changesets").  The tree knows for each name which
entry of which layer it comes from.  Nothing here touches a file.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

from hpcwrap.image.layer import Layer
from hpcwrap.image.tar import DIRECTORY, HARDLINK, SYMLINK, Entry, LayerError, show

MAX_LINKS = 40
"""How many symbolic links one path may follow, as in the kernel (path_resolution(7))."""


class Node:
    """A name in the tree; `layer` and `index` say which entry describes it (-1: none does).

    A hard link's `target` is the node it was linked to, whose content it shares even after that
    node has left the tree.
    """

    __slots__ = ("children", "entry", "index", "layer", "parent", "path", "target")

    def __init__(
        self,
        parent: Optional[Node],
        path: bytes,
        layer: int = -1,
        index: int = -1,
        entry: Optional[Entry] = None,
    ) -> None:
        self.parent = parent
        self.path = path
        self.layer = layer
        self.index = index
        self.entry = entry
        self.target: Optional[Node] = None
        is_directory = entry is None or entry.kind == DIRECTORY
        self.children: Optional[Dict[bytes, Node]] = {} if is_directory else None

    @property
    def content(self) -> Node:
        """The node that holds what is read under this name: itself, or a hard link's target."""
        return self.target or self


def merge(layers: Sequence[Layer]) -> Node:
    """Apply the layers in order and return the root of the resulting tree."""
    tree = _Tree()
    for number, layer in enumerate(layers):
        try:
            tree.apply(number, layer)
        except LayerError as error:
            raise in_layer(error, number, len(layers)) from None
    return tree.root


def in_layer(error: LayerError, number: int, count: int) -> LayerError:
    """The error with its subject: which of the layers, counted from 0, lowest first."""
    return LayerError(f"layer {number + 1} of {count} {error.message}", error.hint)


class _Tree:
    """The tree while layers are applied to it."""

    def __init__(self) -> None:
        self.root = Node(None, b"")
        # Directories by the path they were asked for; emptied whenever a name that could be part
        # of such a path goes or changes its kind.
        self.known: Dict[bytes, Node] = {}

    def apply(self, number: int, layer: Layer) -> None:
        for path in layer.opaque:
            self._clear(path)
        for path in layer.whiteouts:
            self._hide(path)
        for index, entry in enumerate(layer.entries):
            if entry.kind == HARDLINK:
                self._add_link(number, index, entry)
            elif entry.path:
                self._add(number, index, entry)
            elif entry.kind == DIRECTORY:
                self._describe(self.root, number, index, entry)

    def _clear(self, path: bytes) -> None:
        directory = self._find_directory(path)
        if directory is not None and directory.children:
            directory.children.clear()
            self.known.clear()

    def _hide(self, path: bytes) -> None:
        parent_path, _, name = path.rpartition(b"/")
        parent = self._find_directory(parent_path)
        if parent is not None and parent.children and name in parent.children:
            del parent.children[name]
            self.known.clear()

    def _add(self, number: int, index: int, entry: Entry) -> None:
        parent, siblings, name = self._place(entry.path)
        old = siblings.get(name)
        if old is not None:
            if entry.kind == DIRECTORY and old.children is not None:
                self._describe(old, number, index, entry)
                return
            self._forget(old)
        siblings[name] = Node(parent, _join(parent, name), number, index, entry)

    def _add_link(self, number: int, index: int, entry: Entry) -> None:
        target = self._find(entry.link)
        if target is None or target.children is not None:
            reason = "is not there" if target is None else "is a directory"
            raise LayerError(
                f"has the hard link {show(entry.path)} to {show(entry.link)}, which {reason}"
            )
        parent, siblings, name = self._place(entry.path)
        old = siblings.get(name)
        if old is target:
            return
        if old is not None:
            self._forget(old)
        node = Node(parent, _join(parent, name), number, index, entry)
        node.target = target.content
        siblings[name] = node

    def _place(self, path: bytes) -> Tuple[Node, Dict[bytes, Node], bytes]:
        """The directory of a new name, its siblings and the name."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self.known.get(parent_path)
        if parent is None:
            parent = self._ensure_directory(parent_path)
        if not name or parent.children is None:
            raise LayerError("has an entry other than a directory for the root")
        return parent, parent.children, name

    @staticmethod
    def _describe(node: Node, number: int, index: int, entry: Entry) -> None:
        node.layer, node.index, node.entry = number, index, entry

    def _forget(self, node: Node) -> None:
        if node.children is not None or _symlink_target(node) is not None:
            self.known.clear()

    def _find(self, path: bytes) -> Optional[Node]:
        """The node of a path; symbolic links are followed in its parents only."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self._find_directory(parent_path)
        if parent is None or parent.children is None:
            return None
        return parent.children.get(name) if name else parent

    def _find_directory(self, path: bytes) -> Optional[Node]:
        node = self._walk(path, make=False)
        return node if node is not None and node.children is not None else None

    def _ensure_directory(self, path: bytes) -> Node:
        node = self._walk(path, make=True)
        if node is None or node.children is None:
            raise LayerError(f"has files below {show(path)}, which is no directory")
        self.known[path] = node
        return node

    def _walk(self, path: bytes, *, make: bool) -> Optional[Node]:
        """Follow a path from the root, symbolic links within the root, ``..`` not above it."""
        trail = [self.root]
        parts = _split(path)
        links = 0
        while parts:
            part = parts.pop()
            if part == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            node = self._step(trail[-1], part, path, make=make)
            if node is None:
                return None
            target = _symlink_target(node)
            if target is None:
                trail.append(node)
                continue
            links += 1
            if links > MAX_LINKS:
                raise LayerError(f"has a loop of symbolic links at {show(path)}")
            if target.startswith(b"/"):
                del trail[1:]
            parts.extend(_split(target))
        return trail[-1]

    @staticmethod
    def _step(directory: Node, name: bytes, path: bytes, *, make: bool) -> Optional[Node]:
        if directory.children is None:
            if make:
                raise LayerError(f"has files below {show(path)}, which is no directory")
            return None
        node = directory.children.get(name)
        if node is None and make:
            node = directory.children[name] = Node(directory, _join(directory, name))
        return node


def _join(directory: Node, name: bytes) -> bytes:
    return directory.path + b"/" + name if directory.path else name


def _split(path: bytes) -> List[bytes]:
    """The parts of a path, last one first; ``..`` stays."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _symlink_target(node: Node) -> Optional[bytes]:
    entry = node.content.entry
    return entry.link if entry is not None and entry.kind == SYMLINK else None
