"""A job's own cgroups at /sys/fs/cgroup inside, where programs look for what they may use.

Version 1: a tmpfs of links, one for each hierarchy, that lead to the job's cgroup in it.  Where the
scheduler makes that only after the prolog, whoever joins sets the link (native/view.c).  The
hierarchies themselves are at /.hpcwrap/cgroup, whole: programs that put /proc/self/mountinfo and
/proc/self/cgroup together find their own cgroup there, and they cannot if only a part is mounted.
Version 2: the job's cgroup is mounted.  docs/decisions/0146-limits-seen-from-inside.md
"""

from __future__ import annotations

import os
from typing import Dict, NamedTuple, Sequence, Tuple

from hpcwrap.container import rootfs, syscalls
from hpcwrap.container.operations import Workshop

TOP = "/sys/fs/cgroup"
HIERARCHIES = f"{rootfs.OWN}/cgroup"
UNIFIED_MARK = "cgroup.controllers"
"""A file in each cgroup of version 2, and in none of version 1."""


class CgroupView(NamedTuple):
    """What /sys/fs/cgroup shows; `own` are the job's cgroups, as far as they are there by now.

    `unified` says that the host has version 2 alone.
    """

    own: Tuple[str, ...]
    unified: bool

    def describe(self) -> str:
        """Say what is shown."""
        return f"view of the job's own cgroups at {TOP} (ro)"

    def execute(self, workshop: Workshop) -> None:
        """Put it there; nothing where the host has no cgroups."""
        try:
            top = rootfs.open_inside(workshop.root, TOP, rootfs.DIRECTORY)
        except FileNotFoundError:
            return
        if self.unified:
            self._show_unified(workshop.root, top)
        elif os.fstat(top).st_dev != os.stat("..", dir_fd=top).st_dev:
            self._show_links(workshop.root, top)
        os.close(top)

    def _show_unified(self, root: int, top: int) -> None:
        """Mount the job's cgroup; until that is there, whoever mounts it needs the way to it."""
        for path in self.own:
            source = rootfs.open_source(path)
            _copy(source, top)
            os.close(source)
        if not self.own:
            target = rootfs.ensure_own_directory(root, HIERARCHIES)
            _copy(top, target)
            os.close(target)

    def _show_links(self, root: int, top: int) -> None:
        """Move the hierarchies away, for what is only covered is found in mountinfo still."""
        target = rootfs.ensure_own_directory(root, HIERARCHIES)
        syscalls.move_mount(top, target)
        _protect(top)
        links = link_texts(_entries(top), self.own)
        below = rootfs.open_inside(root, TOP, rootfs.DIRECTORY)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount(
            "hpcwrap", f"/proc/self/fd/{below}", "tmpfs", flags, "mode=755,nr_inodes=256,size=64k"
        )
        view = rootfs.open_inside(root, TOP, rootfs.DIRECTORY)
        for name, text in links.items():
            os.symlink(text, name, dir_fd=view)
        for fd in (target, below, view):
            os.close(fd)


def is_unified() -> bool:
    """Whether this host has version 2 alone."""
    return os.path.exists(f"{TOP}/{UNIFIED_MARK}")


def link_texts(entries: Dict[str, str], own: Sequence[str]) -> Dict[str, str]:
    """What each name in /sys/fs/cgroup is to lead to.

    `entries` has the host's names: to the text of a link among them, such as cpu, or to nothing.

    >>> link_texts({"memory": ""}, ["/sys/fs/cgroup/memory/a/job"])
    {'memory': '/.hpcwrap/cgroup/memory/a/job'}
    """
    links = {name: text or f"{HIERARCHIES}/{name}" for name, text in entries.items()}
    for path in own:
        name, _, rest = path[len(TOP) + 1 :].partition("/")
        if name in links:
            links[name] = f"{HIERARCHIES}/{name}/{rest}"
    return links


def _entries(directory: int) -> Dict[str, str]:
    """Names in the host's directory of hierarchies, with the texts of links between them."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    with os.scandir(readable) as entries:
        found = {
            entry.name: os.readlink(entry.name, dir_fd=readable) if entry.is_symlink() else ""
            for entry in entries
        }
    os.close(readable)
    return found


def _copy(source: int, target: int) -> None:
    tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE)
    _protect(tree)
    syscalls.move_mount(tree, target)
    os.close(tree)


def _protect(tree: int) -> None:
    attributes = (
        syscalls.MOUNT_ATTR_RDONLY
        | syscalls.MOUNT_ATTR_NOSUID
        | syscalls.MOUNT_ATTR_NODEV
        | syscalls.MOUNT_ATTR_NOEXEC
    )
    syscalls.mount_setattr(tree, attributes, recursive=True)
