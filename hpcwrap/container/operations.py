"""The operations that a plan is made of.

Each is plain data with two methods: `describe()` says in one line what it does, for
`hpcwrap plan` and for errors; `execute(workshop)` does it.  They run in order, in the new mount
namespace, as root (rootfs.py says how root keeps clear of paths that others control).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple, Protocol, Tuple

from hpcwrap.container import accounts, loop, rootfs, syscalls
from hpcwrap.environment import Variable
from hpcwrap.errors import NodeError, SiteError, UserError
from hpcwrap.job import User

ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
}

HOST_ROOT = "/.host"
COMMANDS_LINK = "/.hpcwrap/commands"


class Note(NamedTuple):
    """A sentence for the user of each step in whose variables `variable` begins with `value`."""

    variable: str
    value: str
    text: str


class Findings(NamedTuple):
    """What only the open image could tell: more changes of the job's variables, and notes."""

    variables: Tuple[Variable, ...] = ()
    notes: Tuple[Note, ...] = ()


class Workshop:
    """Where a container is built: staging directory, open root, the job's user, the image.

    `squashfs` is the image's file.  `findings` are for whoever asked for the container.
    """

    def __init__(self, stage: str, user: User, device: loop.Device, squashfs: str = "") -> None:
        self.device = device
        self.squashfs = squashfs
        self.stage = stage
        self.image = os.path.join(stage, "image")
        self.upper = os.path.join(stage, "upper")
        self.work = os.path.join(stage, "work")
        self.root_path = os.path.join(stage, "root")
        self.root = -1
        self.user = user
        self.findings = Findings()


class Operation(Protocol):
    """One step of a plan."""

    def describe(self) -> str:
        """Say in one line what the operation does."""

    def execute(self, workshop: Workshop) -> None:
        """Do it.  Raises HpcwrapError, or OSError which the builder explains by describe()."""


class Stage(NamedTuple):
    """A tmpfs for mount points and for the few files that are made for each job."""

    size: str

    def describe(self) -> str:
        return f"tmpfs of {self.size} for mount points"

    def execute(self, workshop: Workshop) -> None:
        options = f"mode=755,size={self.size}"
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("hpcwrap", workshop.stage, "tmpfs", flags, options)
        for path in (workshop.image, workshop.upper, workshop.work, workshop.root_path):
            os.mkdir(path, 0o755)


class Image(NamedTuple):
    """The squashfs of the store on a loop device."""

    squashfs: str

    def describe(self) -> str:
        return f"image {self.squashfs} on a loop device (ro,nosuid,nodev)"

    def attach(self) -> loop.Device:
        """Bind the file to a loop device.

        To be called before the mount namespace is made: the kernel names the file by the mount
        that it was opened on, and losetup(8) and `hpcwrap rm` look for the host's name.
        """
        try:
            file = os.open(self.squashfs, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SiteError(
                f"cannot open the image {self.squashfs}: {error.strerror}", "pull it again"
            ) from error
        try:
            return loop.attach(file, self.squashfs)
        finally:
            os.close(file)

    def execute(self, workshop: Workshop) -> None:
        device = workshop.device
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
        try:
            syscalls.mount(device.path, workshop.image, "squashfs", flags)
        except OSError as error:
            raise _bad_image(self.squashfs, error) from error
        finally:
            os.close(device.fd)


class Root(NamedTuple):
    """The overlay that joins the image and the tmpfs: the container's root directory."""

    def describe(self) -> str:
        return "root: overlay of image and tmpfs (nosuid,nodev)"

    def execute(self, workshop: Workshop) -> None:
        options = f"lowerdir={workshop.image},upperdir={workshop.upper},workdir={workshop.work}"
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        try:
            syscalls.mount("hpcwrap", workshop.root_path, "overlay", flags, options)
        except OSError as error:
            raise NodeError(
                f"cannot mount an overlay: {error.strerror}", "is the kernel module overlay loaded?"
            ) from error
        workshop.root = os.open(workshop.root_path, rootfs.DIRECTORY)


class Bind(NamedTuple):
    """A directory or file of the host, seen inside with everything mounted below it.

    With `as_user` the source is opened with the job user's rights.  `nofail` skips a source that
    is not there.  `origin` names the setting that asked for it.
    """

    source: str
    target: str
    options: Tuple[str, ...] = ()
    recursive: bool = True
    as_user: bool = True
    nofail: bool = False
    origin: str = "hpcwrap"

    def describe(self) -> str:
        words = ["rbind" if self.recursive else "bind", *self.options]
        words += ["nofail"] if self.nofail else []
        where = self.source if self.source == self.target else f"{self.source} on {self.target}"
        return f"bind {where} ({','.join(words)}; {self.origin})"

    def execute(self, workshop: Workshop) -> None:
        try:
            source = self._open_source(workshop.user)
        except OSError as error:
            if self.nofail:
                return
            raise SiteError(
                f"cannot open {self.source} for {workshop.user.name}: {error.strerror}",
                f"mount asked for by {self.origin}",
            ) from error
        target = _mount_point(workshop.root, self.target, like=source)
        recursive = syscalls.AT_RECURSIVE if self.recursive else 0
        tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE | recursive)
        attributes = sum(ATTRIBUTES[option] for option in self.options)
        if attributes:
            syscalls.mount_setattr(tree, attributes, recursive=self.recursive)
        syscalls.move_mount(tree, target)
        for fd in (source, target, tree):
            os.close(fd)

    def _open_source(self, user: User) -> int:
        if not self.as_user:
            return rootfs.open_source(self.source)
        with rootfs.rights_of(user):
            return rootfs.open_source(self.source)


class Tmpfs(NamedTuple):
    """An empty file system in memory, charged to the job's cgroup by what writes into it."""

    target: str
    options: Tuple[str, ...]
    origin: str = "hpcwrap"

    def describe(self) -> str:
        return f"tmpfs on {self.target} ({','.join(self.options)}; {self.origin})"

    def execute(self, workshop: Workshop) -> None:
        target = rootfs.ensure_directory(workshop.root, self.target)
        # mount(2) takes a path only; the magic link leads to the very directory that we opened.
        data = [option for option in self.options if "=" in option]
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        flags |= syscalls.MS_RDONLY if "ro" in self.options else 0
        syscalls.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", flags, ",".join(data) or None)
        os.close(target)


class HostFile(NamedTuple):
    """A copy of a small file of the host, as it is now; nothing where the host has none.

    A copy, not a bind: resolv.conf and localtime are links on many hosts, and are replaced there
    by renaming, which a bind would not see.
    """

    path: str

    def describe(self) -> str:
        return f"copy of the host's {self.path}"

    def execute(self, workshop: Workshop) -> None:
        try:
            with open(self.path, "rb") as file:
                content = file.read(1 << 20)
        except OSError:
            return
        rootfs.write_file(workshop.root, self.path, content)


class Accounts(NamedTuple):
    """passwd and group: the image's own, and the job's user with all groups."""

    user: str

    def describe(self) -> str:
        return f"passwd and group with {self.user} and its groups"

    def execute(self, workshop: Workshop) -> None:
        for database in (accounts.passwd(workshop.user), accounts.group(workshop.user)):
            image = rootfs.read_file(workshop.root, database.path)
            rootfs.write_file(workshop.root, database.path, accounts.merge(image, database))


class Commands(NamedTuple):
    """The host's commands at their own paths inside: hpcwrap-host is mounted on each of them.

    It finds the host's root at /.host, and the commands' directory there by a link.  Mounted, not
    written: where the directory is the host's own, its files must stay as they are.  `scripts` are
    paths of the host's that the scheduler calls from inside.
    """

    directory: str
    names: Tuple[str, ...]
    program: str
    scripts: Tuple[str, ...] = ()

    def describe(self) -> str:
        names = " ".join((*self.names, *self.scripts))
        return f"the host's commands from {self.directory}: {names}"

    def execute(self, workshop: Workshop) -> None:
        os.close(rootfs.ensure_own_directory(workshop.root, HOST_ROOT))
        rootfs.make_link(workshop.root, COMMANDS_LINK, self.directory)
        for path in (*(os.path.join(self.directory, name) for name in self.names), *self.scripts):
            Bind(self.program, path, ("ro", "nosuid", "nodev"), as_user=False).execute(workshop)


class ReadOnlyRoot(NamedTuple):
    """The root alone becomes read-only; what is mounted in it keeps its own state."""

    def describe(self) -> str:
        return "root read-only"

    def execute(self, workshop: Workshop) -> None:
        syscalls.mount_setattr(workshop.root, syscalls.MOUNT_ATTR_RDONLY, recursive=False)


class SwitchRoot(NamedTuple):
    """The new root takes the place of the host's, which goes away with all its mounts."""

    def describe(self) -> str:
        return "pivot_root, the host's root away"

    def execute(self, workshop: Workshop) -> None:
        # pivot_root(2): both arguments may be the new root, the old one is then stacked on it.
        os.fchdir(workshop.root)
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".", syscalls.MNT_DETACH)
        os.chdir("/")


class KeepHostRoot(NamedTuple):
    """The new root takes the place of the host's, which stays to be seen, for its commands."""

    def describe(self) -> str:
        return f"pivot_root, the host's root to {HOST_ROOT} (nosuid, devices in its /dev only)"

    def execute(self, workshop: Workshop) -> None:
        os.fchdir(workshop.root)
        syscalls.pivot_root(".", f".{HOST_ROOT}")
        os.chdir("/")
        syscalls.umount2(HOST_ROOT + workshop.stage, syscalls.MNT_DETACH)
        _take_devices(HOST_ROOT)


def _take_devices(host: str) -> None:
    """Leave device nodes in the host's /dev alone, where those that a job must not use are covered.

    The host may have others of the same numbers: in a chroot(2)'s /dev, or an image on its disk.
    """
    root = os.open(host, rootfs.DIRECTORY)
    dev = rootfs.open_inside(root, "/dev", rootfs.DIRECTORY)
    tree = syscalls.open_tree(dev, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_NOSUID, recursive=True)
    all_of_it = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    syscalls.mount_setattr(root, all_of_it, recursive=True)
    syscalls.move_mount(tree, dev)
    for fd in (root, dev, tree):
        os.close(fd)


def _mount_point(root: int, path: str, *, like: int) -> int:
    if stat.S_ISDIR(os.fstat(like).st_mode):
        return rootfs.ensure_directory(root, path)
    return rootfs.ensure_file(root, path)


def _bad_image(path: str, error: OSError) -> Exception:
    """EINVAL and EIO speak of the file, a lack of memory of the moment, all else of the node."""
    if error.errno in (errno.EIO, errno.EINVAL, errno.EUCLEAN):
        return UserError(
            f"cannot mount the image {path}: it is broken, or its compression not in the kernel",
            "remove and pull it again",
        )
    if error.errno == errno.ENOMEM:
        return SiteError(f"cannot mount the image {path}: {error.strerror}", "try again")
    return NodeError(f"cannot mount a squashfs: {error.strerror}", "is squashfs in the kernel?")
