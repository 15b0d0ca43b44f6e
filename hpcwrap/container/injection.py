"""Operations that bring devices into a container, and keep others out of it."""

from __future__ import annotations

import errno
import os
import stat
from typing import List, NamedTuple, Tuple

from hpcwrap.container import rootfs, syscalls
from hpcwrap.container.cdi import Node
from hpcwrap.container.elf import Version, file_version, format_version
from hpcwrap.container.hiding import hide
from hpcwrap.container.hooks import Link
from hpcwrap.container.operations import Workshop
from hpcwrap.errors import SiteError

COMPATIBILITY_HOME = "/usr/local/cuda/compat"
COMPATIBILITY = "/.hpcwrap/cuda-compat"

TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class DeviceNodes(NamedTuple):
    """Device nodes at their paths inside; most are there already, with the host's /dev.

    Owner and mode stay the host's: a container gives its user no right that the user lacks.
    """

    nodes: Tuple[Node, ...]

    def describe(self) -> str:
        """Say in one line what the operation does."""
        return f"devices {' '.join(node.path for node in self.nodes)}"

    def execute(self, workshop: Workshop) -> None:
        """Check that they are what the spec says, and mount those that are not in place."""
        for node in self.nodes:
            source = _open_node(node)
            try:
                if not _is_there(workshop.root, node, source):
                    _mount(source, workshop.root, node.path)
            finally:
                os.close(source)


class Links(NamedTuple):
    """Symbolic links inside: what each says, and its path."""

    links: Tuple[Link, ...]

    def describe(self) -> str:
        """Say in one line what the operation does."""
        return f"links {' '.join(path for _, path in self.links)}"

    def execute(self, workshop: Workshop) -> None:
        """Make them; one that says the same already stays, in a mount of the host, too."""
        for target, path in self.links:
            if _read_link(workshop.root, path) != target:
                rootfs.make_link(workshop.root, path, target)


class CudaCompatibility(NamedTuple):
    """An image's CUDA compatibility libraries, where they are newer than the host's driver.

    They let programs of a newer CUDA use an older driver, and are of no use with a newer one: so
    NVIDIA's toolkit chooses, too (its hook enable-cuda-compat).  `driver` is the host's version.
    """

    driver: Version

    def describe(self) -> str:
        """Say in one line what the operation does."""
        version = format_version(self.driver)
        return f"CUDA compatibility libraries of the image, if newer than driver {version}"

    def execute(self, workshop: Workshop) -> None:
        """Link them into a directory that comes first in LD_LIBRARY_PATH; else it is not there."""
        names = _names(workshop.root, COMPATIBILITY_HOME)
        versions = [file_version(name) for name in names if name.startswith("libcuda.so.")]
        if max(versions, default=())[:1] <= self.driver[:1]:
            return
        for name in names:
            if name.startswith("lib"):
                rootfs.make_link(
                    workshop.root, f"{COMPATIBILITY}/{name}", f"{COMPATIBILITY_HOME}/{name}"
                )


class Hidden(NamedTuple):
    """GPUs of others: device nodes that nobody can open, inside and below /.host.

    `inside` and `host` are their paths.
    """

    inside: Tuple[str, ...]
    host: Tuple[str, ...]

    def describe(self) -> str:
        """Say in one line what the operation does."""
        return f"not to be opened: {' '.join(self.host)}"

    def execute(self, workshop: Workshop) -> None:
        """Cover them: hiding.py has how."""
        host = os.open("/", rootfs.DIRECTORY)
        try:
            for path in self.inside:
                hide(workshop.root, path)
            for path in self.host:
                hide(host, path)
        finally:
            os.close(host)


def _open_node(node: Node) -> int:
    """Open (O_PATH) a device of the host.  Raises SiteError when it is not as the spec has it."""
    try:
        source = rootfs.open_source(node.host_path)
    except OSError as error:
        raise SiteError(
            f"cannot find the device {node.host_path} of a CDI spec: {error.strerror}",
            "write the spec anew; see `hpcwrap cdi check`",
        ) from error
    status = os.fstat(source)
    kind = stat.S_IFMT(status.st_mode)
    numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if kind not in TYPES.values() or TYPES.get(node.type, kind) != kind:
        os.close(source)
        raise SiteError(f"cannot use {node.host_path} of a CDI spec: it is no device of that type")
    # 0 is what a spec has that does not say: no device has it as its major number.
    if node.major > 0 and (node.major, max(node.minor, 0)) != numbers:
        os.close(source)
        raise SiteError(
            f"cannot use the device {node.host_path}: its numbers are {numbers[0]}:{numbers[1]}, "
            f"the CDI spec has {node.major}:{node.minor}",
            "write the spec anew",
        )
    return source


def _is_there(root: int, node: Node, source: int) -> bool:
    """True when the path inside is the very device."""
    try:
        found = rootfs.open_inside(root, node.path, os.O_PATH)
    except OSError:
        return False
    try:
        ours, theirs = os.fstat(source), os.fstat(found)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    finally:
        os.close(found)


def _mount(source: int, root: int, path: str) -> None:
    target = rootfs.ensure_file(root, path)
    tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_NOSUID, recursive=False)
    syscalls.move_mount(tree, target)
    for fd in (target, tree):
        os.close(fd)


def _read_link(root: int, path: str) -> str:
    """What a symbolic link inside says; empty where there is none."""
    parent, name = os.path.split(path)
    try:
        above = rootfs.open_inside(root, parent, rootfs.DIRECTORY)
    except OSError:
        return ""
    try:
        return os.readlink(name, dir_fd=above)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return ""
    finally:
        os.close(above)


def _names(root: int, directory: str) -> List[str]:
    """What lies in a directory of the image; nothing where it has none."""
    try:
        found = rootfs.open_own(root, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return sorted(os.listdir(found))
    finally:
        os.close(found)
