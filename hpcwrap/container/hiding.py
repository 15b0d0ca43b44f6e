"""Devices of the node that a container is not to use: they are there, and nobody can open them."""

from __future__ import annotations

import glob
import os
import stat
from typing import List, NamedTuple, Tuple

from hpcwrap.container import rootfs, syscalls
from hpcwrap.container.operations import Workshop


class Hide(NamedTuple):
    """Cover devices and directories, given as patterns of host paths, inside and below /.host.

    What matches when the container is built is covered: a file so that it cannot be opened, a
    directory so that it is empty.  `reason` is what is left out, for people.
    """

    patterns: Tuple[str, ...]
    reason: str

    def describe(self) -> str:
        """Say in one line what the operation does."""
        return f"no {self.reason}: {' '.join(self.patterns)} hidden"

    def execute(self, workshop: Workshop) -> None:
        """Cover them in the container's root, and in the host's, which may stay to be seen."""
        host = os.open("/", rootfs.DIRECTORY)
        try:
            for path in self.matches():
                hide(workshop.root, path)
                hide(host, path)
        finally:
            os.close(host)

    def matches(self) -> List[str]:
        """Paths of the host that are to be covered."""
        return [path for pattern in self.patterns for path in sorted(glob.glob(pattern))]


def hide(root: int, path: str) -> None:
    """Cover one path; where it is not there, nothing is to be hidden."""
    try:
        target = rootfs.open_inside(root, path, os.O_PATH)
    except FileNotFoundError:
        return
    try:
        if stat.S_ISDIR(os.fstat(target).st_mode):
            _cover_directory(target)
        else:
            _cover_file(target)
    finally:
        os.close(target)


def _cover_directory(target: int) -> None:
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("hpcwrap", f"/proc/self/fd/{target}", "tmpfs", flags, "mode=755,size=4k")


def _cover_file(target: int) -> None:
    """Mount the file on itself: on a mount with nodev no device can be opened, not even by root.

    It keeps its name, type and owner, so that programs say what they say without permission.
    """
    tree = syscalls.open_tree(target, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_NODEV, recursive=False)
    syscalls.move_mount(tree, target)
    os.close(tree)
