"""Trees as they are on a file system: everything that an image keeps of a file, to compare."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Tuple

Attributes = Tuple[Tuple[str, bytes], ...]


class File(NamedTuple):
    """One name; content is a digest, or a symbolic link's target.  mtime in s."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    content: bytes
    attributes: Attributes


Tree = Dict[bytes, File]
Groups = FrozenSet[FrozenSet[bytes]]

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}


def read_tree(root: str) -> Tuple[Tree, Groups]:
    """All below a directory, and the sets of names that share an inode."""
    tree: Tree = {}
    inodes: Dict[int, List[bytes]] = {}
    top = os.fsencode(root)
    for directory, _, _ in os.walk(top):
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.path.relpath(entry.path, top)
                found = entry.stat(follow_symlinks=False)
                tree[name] = _read_file(entry.path, found)
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    inodes.setdefault(found.st_ino, []).append(name)
    return tree, frozenset(frozenset(names) for names in inodes.values() if len(names) > 1)


def _read_file(path: bytes, found: os.stat_result) -> File:
    kind = KINDS[stat.S_IFMT(found.st_mode)]
    return File(
        kind=kind,
        mode=0 if kind == "symlink" else stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime=int(found.st_mtime_ns // 10**9),
        size=found.st_size if kind == "file" else 0,
        content=_content(path, kind),
        attributes=_attributes(path) if kind in ("file", "dir") else (),
    )


def _content(path: bytes, kind: str) -> bytes:
    if kind == "symlink":
        return os.readlink(path)
    if kind != "file":
        return b""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest().encode()


def _attributes(path: bytes) -> Attributes:
    try:
        names = os.listxattr(path)
    except OSError as error:
        # A squashfs without any says that it knows none.
        if error.errno != errno.EOPNOTSUPP:
            raise
        return ()
    return tuple(sorted((name, os.getxattr(path, name)) for name in names))


@contextmanager
def mounted(squashfs: str, directory: Path) -> Iterator[str]:
    """A squashfs, mounted as a job's would be."""
    directory.mkdir(exist_ok=True)
    options = "loop,ro,nosuid,nodev"
    subprocess.run(["mount", "-t", "squashfs", "-o", options, squashfs, str(directory)], check=True)
    try:
        yield str(directory)
    finally:
        subprocess.run(["umount", str(directory)], check=True)
