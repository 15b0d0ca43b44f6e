"""Layers for tests, made by Python's tarfile, and an oracle that merges them in its own way."""

from __future__ import annotations

import io
import tarfile
from types import MappingProxyType
from typing import Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from hpcwrap.image.layer import index_layer
from hpcwrap.image.plan import ZEROS, Plan, flatten

KINDS = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}


class Member(NamedTuple):
    """One entry of a layer, as a test writes it."""

    name: str
    kind: str = "file"
    content: bytes = b""
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_600_000_000
    uname: str = ""
    pax: Mapping[str, str] = MappingProxyType({})


class Found(NamedTuple):
    """One name in a merged tree."""

    kind: str
    mode: int
    uid: int
    gid: int
    content: bytes


Tree = Dict[str, Found]
Groups = FrozenSet[FrozenSet[str]]


def make_layer(members: Sequence[Member], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar stream of the members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type = KINDS[member.kind]
            info.size = len(member.content) if member.kind == "file" else 0
            info.linkname = member.link
            info.mode, info.mtime = member.mode, member.mtime
            info.uid, info.gid, info.uname = member.uid, member.gid, member.uname
            info.pax_headers = dict(member.pax)
            archive.addfile(info, io.BytesIO(member.content))
    return file.getvalue()


def plan_of(layers: Sequence[bytes]) -> Plan:
    """What hpcwrap would write for these layers."""
    return flatten([index_layer(memoryview(layer)) for layer in layers])


def stream_of(plan: Plan, layers: Sequence[bytes]) -> bytes:
    """The bytes that mksquashfs would read."""
    parts = []
    for segment in plan.segments:
        if isinstance(segment, bytes):
            parts.append(segment)
        elif segment.layer == ZEROS:
            parts.append(bytes(segment.end))
        else:
            parts.append(layers[segment.layer][segment.start : segment.end])
    return b"".join(parts)


def read_stream(stream: bytes) -> Tuple[Tree, Groups]:
    """The tree in a merged stream; fails where its order or its names would mislead mksquashfs."""
    tree: Tree = {}
    leaders: Dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        for info in archive:
            # mksquashfs strips a leading "./", as our reader does.
            name = info.name[2:] if info.name.startswith("./") else info.name
            name = name.rstrip("/")  # tarfile of 3.9 leaves it at the end of long names
            assert name not in tree, f"{name} twice"
            parent = name.rpartition("/")[0]
            assert not parent or tree[parent].kind == "dir", f"{name} before its parent"
            leaders[name] = name
            if info.islnk():
                target = info.linkname[2:] if info.linkname.startswith("./") else info.linkname
                assert leaders[target] == target
                tree[name], leaders[name] = tree[target], target
                continue
            tree[name] = _found(archive, info)
    return tree, groups_of(leaders)


def groups_of(leaders: Dict[str, str]) -> Groups:
    """The sets of names that share an inode, from name → some mark of the inode."""
    groups: Dict[str, List[str]] = {}
    for name, leader in leaders.items():
        groups.setdefault(leader, []).append(name)
    return frozenset(frozenset(names) for names in groups.values() if len(names) > 1)


def _found(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Found:
    kind = next(kind for kind, code in KINDS.items() if code == info.type)
    if kind == "symlink":
        return Found(kind, 0, info.uid, info.gid, info.linkname.encode("utf-8", "surrogateescape"))
    body = archive.extractfile(info) if kind == "file" else None
    return Found(kind, info.mode, info.uid, info.gid, body.read() if body else b"")


class CannotError(Exception):
    """The oracle cannot apply the layers: hpcwrap must refuse them as well."""


class Oracle:
    """Extraction of layers in order into a flat dict of full paths (root: the empty text)."""

    def __init__(self) -> None:
        self.names: Dict[str, Tuple[Found, int]] = {"": (Found("dir", 0o755, 0, 0, b""), 0)}
        self.inodes = 0

    def result(self) -> Tuple[Tree, Groups]:
        """What an image has of it: all but the root and the devices."""
        kept = {
            name: pair for name, pair in self.names.items() if name and pair[0].kind != "device"
        }
        tree = {name: found for name, (found, _) in kept.items()}
        return tree, groups_of({name: str(inode) for name, (_, inode) in kept.items()})

    def apply(self, layer: bytes) -> None:
        """Opaque marks and whiteouts first, they concern what is below; then the entries."""
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            members = archive.getmembers()
            names = [clean(info.name) for info in members]
            for name in sorted(names, key=lambda name: not name.endswith(".wh..wh..opq")):
                self._whiteout(name)
            for info in members:
                if ".wh." not in info.name:
                    self._extract(archive, info)

    def _whiteout(self, name: str) -> None:
        parent, _, base = name.rpartition("/")
        if not base.startswith(".wh."):
            return
        where = self.follow(parent)
        if where is None or self.names[where][0].kind != "dir":
            return
        if base == ".wh..wh..opq":
            self._drop_below(where)
        else:
            self._drop(join(where, base[4:]))

    def _extract(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        name = clean(info.name)
        if not name:
            if not info.isdir():
                raise CannotError(info.name)
            return
        if info.islnk():
            self._link(name, clean(info.linkname))
            return
        path = self._place(name)
        found = _found(archive, info)._replace(mode=info.mode & 0o1777 if not info.issym() else 0)
        if not (info.isdir() and path in self.names and self.names[path][0].kind == "dir"):
            self._drop(path)
        self.inodes += 1
        self.names[path] = (found, self.inodes)

    def _link(self, name: str, target: str) -> None:
        parent, _, base = target.rpartition("/")
        where = self.follow(parent)
        source = None if where is None else join(where, base)
        if source not in self.names or self.names[source][0].kind == "dir":
            raise CannotError(f"{name} to {target}")
        pair = self.names[source]
        path = self._place(name)
        if path != source:
            self._drop(path)
            self.names[path] = pair

    def _place(self, name: str) -> str:
        parent, _, base = name.rpartition("/")
        where = self.follow(parent, make=True)
        if where is None or self.names[where][0].kind != "dir":
            raise CannotError(f"{name} is below a file")
        return join(where, base)

    def follow(self, path: str, *, make: bool = False, depth: int = 0) -> Optional[str]:
        """Where a path leads, symbolic links within the root."""
        if depth > 40 and not make:
            return None
        if depth > 40:
            raise CannotError(f"loop at {path}")
        here = ""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for number, part in enumerate(parts):
            if part == "..":
                here = here.rpartition("/")[0]
                continue
            if self.names[here][0].kind != "dir":
                if make:
                    raise CannotError(f"{here} is no directory")
                return None
            there = join(here, part)
            if there not in self.names:
                if not make:
                    return None
                self.inodes += 1
                self.names[there] = (Found("dir", 0o755, 0, 0, b""), self.inodes)
            found = self.names[there][0]
            if found.kind == "symlink":
                target = found.content.decode("utf-8", "surrogateescape")
                start = "" if target.startswith("/") else here
                rest = "/".join([start, target, *parts[number + 1 :]])
                return self.follow(rest, make=make, depth=depth + 1)
            here = there
        return here

    def _drop(self, path: str) -> None:
        self.names.pop(path, None)
        self._drop_below(path)

    def _drop_below(self, path: str) -> None:
        prefix = path + "/" if path else ""
        for name in [name for name in self.names if name.startswith(prefix) and name != path]:
            if name:
                del self.names[name]


def clean(name: str) -> str:
    """A name's path below the root, ``..`` resolved in the text."""
    parts: List[str] = []
    for part in name.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def join(directory: str, name: str) -> str:
    """A path of a directory and a name in it."""
    return f"{directory}/{name}" if directory else name
