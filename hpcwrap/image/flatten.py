"""Merge layers: simulate their extraction on headers alone.

A layer is applied in two phases, its whiteouts to what the layers below left, then its entries in
their order (OCI image-spec layer.md, "Applying Changesets").  The tree knows for each name which
entry of which layer it comes from.  Nothing here touches a file.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Union

from hpcwrap.image.layer import KIND, Layer, join
from hpcwrap.image.tar import DIRECTORY, HARDLINK, MAX_NAME, SYMLINK, LayerError, show

MAX_LINKS = 40
"""How many symbolic links one path may follow, as in the kernel (path_resolution(7))."""

SHIFT = 32
INDEX = (1 << SHIFT) - 1
NOBODY = -1
"""An entry of all layers is a number: its layer above SHIFT, its index below; NOBODY is none."""


class Directory:
    """A directory in the tree; `entry` describes it (NOBODY: none does).

    Its children that are no directories are the numbers of their entries: a million names are to
    fit into memory.  `seen` is for who goes through the tree.
    """

    __slots__ = ("children", "entry", "parent", "path", "seen")

    def __init__(self, parent: Optional[Directory], path: bytes, entry: int = NOBODY) -> None:
        self.parent = parent
        self.path = path
        self.entry = entry
        self.children: Dict[bytes, Name] = {}
        self.seen: object = None


Name = Union[Directory, int]


def merge(layers: Sequence[Layer]) -> Tree:
    """Apply the layers in order, lowest first.

    Raises LayerError, whose message begins with "layer N of M".
    """
    tree = Tree(layers)
    for number in range(len(layers)):
        try:
            tree.apply(number)
        except LayerError as error:
            raise in_layer(error, number, len(layers)) from None
    return tree


def in_layer(error: LayerError, number: int, count: int) -> LayerError:
    """The error with its subject: which of the layers, counted from 0, lowest first."""
    return LayerError(f"layer {number + 1} of {count} {error.message}", error.hint)


class Tree:
    """The tree while layers are applied to it.

    targets: for the entry of a hard link, the entry whose content it shares, even after that has
    left the tree.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.root = Directory(None, b"")
        self.targets: Dict[int, int] = {}
        # What the directories of the current layer are in the tree; emptied whenever a name that
        # could be part of such a path goes or changes its kind.
        self._homes: Dict[int, Directory] = {}

    def apply(self, number: int) -> None:
        """Apply a layer: its whiteouts, then its entries.

        Raises LayerError.
        """
        layer = self.layers[number]
        self._homes.clear()
        for path in layer.opaque:
            self._clear(path)
        for path in layer.whiteouts:
            self._hide(path)
        entry = number << SHIFT
        for flagged, parent, name in zip(layer.kinds, layer.parents, layer.names):
            kind = flagged & KIND
            if kind == HARDLINK:
                self._add_link(layer, parent, name, entry)
            elif kind == DIRECTORY:
                self._add_directory(self._home(layer, parent), name, entry)
            else:
                home = self._homes.get(parent) or self._home(layer, parent)
                if name in home.children or not name:
                    self._forget(home.children.get(name), name)
                home.children[name] = entry
            entry += 1

    def content(self, entry: int) -> int:
        """The entry that holds what is read under this one: itself, or a hard link's target."""
        return self.targets.get(entry, entry)

    def kind(self, entry: int) -> int:
        """The kind of an entry."""
        return self.layers[entry >> SHIFT].kinds[entry & INDEX] & KIND

    def _clear(self, path: bytes) -> None:
        directory = self._walk(path, make=False)
        if isinstance(directory, Directory) and directory.children:
            directory.children.clear()
            self._homes.clear()

    def _hide(self, path: bytes) -> None:
        parent_path, _, name = path.rpartition(b"/")
        parent = self._walk(parent_path, make=False)
        if isinstance(parent, Directory) and name in parent.children:
            del parent.children[name]
            self._homes.clear()

    def _add_directory(self, home: Directory, name: bytes, entry: int) -> None:
        old = home.children.get(name) if name else self.root
        if isinstance(old, Directory):
            old.entry = entry
            return
        self._forget(old, name)
        home.children[name] = Directory(home, _below(home, name), entry)

    def _add_link(self, layer: Layer, parent: int, name: bytes, entry: int) -> None:
        link = layer.links.get(entry & INDEX, b"")
        target = self._find(link)
        if target is None or isinstance(target, Directory):
            reason = "is not there" if target is None else "is a directory"
            path = join(layer.directories[parent], name)
            raise LayerError(f"has the hard link {show(path)} to {show(link)}, which {reason}")
        home = self._home(layer, parent)
        old = home.children.get(name)
        if old == target:
            return
        self._forget(old, name)
        self.targets[entry] = self.content(target)
        home.children[name] = entry

    def _home(self, layer: Layer, parent: int) -> Directory:
        known = self._homes.get(parent)
        if known is not None:
            return known
        path = layer.directories[parent]
        home = self._walk(path, make=True)
        if not isinstance(home, Directory):
            raise LayerError(f"has files below {show(path)}, which is no directory")
        self._homes[parent] = home
        return home

    def _forget(self, old: Optional[Name], name: bytes) -> None:
        """Prepare for another thing under a name."""
        if not name:
            raise LayerError("has an entry other than a directory for the root")
        if isinstance(old, Directory) or (old is not None and self._link_of(old) is not None):
            self._homes.clear()

    def _find(self, path: bytes) -> Optional[Name]:
        """What has a path; symbolic links are followed in its parents only."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self._walk(parent_path, make=False)
        if not isinstance(parent, Directory):
            return None
        return parent.children.get(name) if name else parent

    def _walk(self, path: bytes, *, make: bool) -> Optional[Name]:
        """Follow a path from the root, symbolic links within the root, ``..`` not above it."""
        trail: List[Name] = [self.root]
        parts = _split(path)
        links = 0
        while parts:
            part = parts.pop()
            if part == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            found = self._step(trail[-1], part, path, make=make)
            if found is None:
                return None
            target = None if isinstance(found, Directory) else self._link_of(found)
            if target is None:
                trail.append(found)
                continue
            links += 1
            if links > MAX_LINKS and not make:
                return None
            if links > MAX_LINKS:
                raise LayerError(f"has a loop of symbolic links at {show(path)}")
            if target.startswith(b"/"):
                del trail[1:]
            parts.extend(_split(target))
        return trail[-1]

    @staticmethod
    def _step(directory: Name, name: bytes, path: bytes, *, make: bool) -> Optional[Name]:
        if not isinstance(directory, Directory):
            if make:
                raise LayerError(f"has files below {show(path)}, which is no directory")
            return None
        found = directory.children.get(name)
        if found is None and make:
            found = directory.children[name] = Directory(directory, _below(directory, name))
        return found

    def _link_of(self, entry: int) -> Optional[bytes]:
        """Where a symbolic link points to; None for anything else."""
        entry = self.content(entry)
        if self.kind(entry) != SYMLINK:
            return None
        return self.layers[entry >> SHIFT].links[entry & INDEX]


def _below(directory: Directory, name: bytes) -> bytes:
    path = join(directory.path, name)
    # Symbolic links in the parents can make a path longer than any that a layer may have.
    if len(path) > MAX_NAME:
        raise LayerError(f"has directories nested too deeply: {show(path)}")
    return path


def _split(path: bytes) -> List[bytes]:
    """The parts of a path, last one first; ``..`` stays."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
