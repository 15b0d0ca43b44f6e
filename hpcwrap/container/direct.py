"""Directories of the image seen without the overlay.

The overlay is there for mount points that the image lacks.  It makes each look-up and each opening
dearer: 32 ranks that import numpy took 5 % longer (docs/decisions/0043).  So directories in which
nothing was made or mounted are the squashfs' own, bound over the overlay's.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from itertools import islice
from typing import FrozenSet, Iterable, Iterator, List, NamedTuple, Set, Tuple

from hpcwrap.container import rootfs, syscalls
from hpcwrap.container.operations import Workshop

LEAF_LINKS = 2
"""Hard links of a directory without directories in it (inode(7)); most of these are small, and a
mount costs the prolog time."""

LEFT_OUT = frozenset(("/dev", "/etc", "/home", "/proc", "/root", "/run", "/sys", "/tmp", "/var"))
"""Programs do not lie there: to look into them would cost the prolog more than it saves the job."""

MOST_MOUNTS = 100
MOST_ENTRIES = 5000
"""Of a container, and looked at of a directory: an image can have a million."""

_NO_LINK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Direct(NamedTuple):
    """The image's large directories in which nothing was made or mounted, without the overlay.

    To be executed last: nothing can be made in them any more.
    """

    def describe(self) -> str:
        """Say in one line what the operation does."""
        return "directories that are the image's alone, without the overlay (ro,nosuid,nodev)"

    def execute(self, workshop: Workshop) -> None:
        """Bind them."""
        changed = frozenset(_ancestors([*_made(workshop.upper), *_mounted(workshop.root_path)]))
        image = os.open(workshop.image, _NO_LINK)
        try:
            for source, target in islice(_alone(image, workshop.root, "", changed), MOST_MOUNTS):
                _bind(source, target)
        finally:
            os.close(image)


def mount_points(mountinfo: str, below: str) -> List[str]:
    """Where something is mounted below a directory: paths from there, with a slash before.

    `mountinfo` is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
    """
    found = (_unescape(line.split(" ", 5)[4]) for line in mountinfo.splitlines())
    return [path[len(below) :] for path in found if path.startswith(f"{below}/")]


def _unescape(path: str) -> str:
    """Blanks are written as \\040, and so on."""
    return path.encode("latin-1").decode("unicode_escape") if "\\" in path else path


def _mounted(root: str) -> List[str]:
    # Latin-1, since the kernel writes bytes, whatever their encoding, and escapes them one by one.
    with open("/proc/self/mountinfo", encoding="latin-1") as file:
        paths = mount_points(file.read(), root)
    return [os.fsdecode(path.encode("latin-1")) for path in paths]


def _made(upper: str) -> Iterator[str]:
    """Directories of the overlay's upper layer: whatever was made is in one of them."""
    for path, _, _ in os.walk(upper):
        yield path[len(upper) :]


def _ancestors(paths: Iterable[str]) -> Set[str]:
    found: Set[str] = set()
    for path in paths:
        above = path
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found


def _alone(image: int, root: int, path: str, changed: FrozenSet[str]) -> Iterator[Tuple[int, int]]:
    """The image's large directories below one, open, and where they are in the overlay."""
    for name in _large(image, path):
        with _both(image, root, name) as (source, target):
            where = f"{path}/{name}"
            if target >= 0 and where in changed:
                yield from _alone(source, target, where, changed)
            elif target >= 0:
                yield source, target


@contextmanager
def _both(image: int, root: int, name: str) -> Iterator[Tuple[int, int]]:
    """A directory of the image and the same in the overlay; -1 where it is not the same any more.

    Something is mounted on it then (EXDEV), or was put in its place.
    """
    source, target = os.open(name, _NO_LINK, dir_fd=image), -1
    try:
        with suppress(OSError):
            target = rootfs.open_own(root, name, rootfs.DIRECTORY | os.O_NOFOLLOW)
        yield source, target
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)


def _large(directory: int, path: str) -> List[str]:
    """Names of directories that have directories, and may have programs."""
    with os.scandir(directory) as entries:
        seen = islice(entries, MOST_ENTRIES)
        found = [
            entry
            for entry in seen
            if entry.is_dir(follow_symlinks=False) and f"{path}/{entry.name}" not in LEFT_OUT
        ]
        return [each.name for each in found if _links(each) > LEAF_LINKS]


def _links(entry: os.DirEntry[str]) -> int:
    return entry.stat(follow_symlinks=False).st_nlink


def _bind(source: int, target: int) -> None:
    tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)
