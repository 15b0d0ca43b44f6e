"""Safe handling of paths in a root file system that an image made.

Everything below is relative to an open directory, the container's root, and resolved by the
kernel with RESOLVE_IN_ROOT: a symbolic link of the image can lead anywhere in the image and never
out of it (openat2(2)).  Inside are mounts of the host, too, so whatever is not only looked at is
resolved with RESOLVE_NO_XDEV besides.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import Iterator, Sequence

from hpcwrap.container import syscalls
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.job import User

DIRECTORY = os.O_PATH | os.O_DIRECTORY
MOUNT_POINT_MODE = 0o755
OWN = "/.hpcwrap"
"""Where hpcwrap keeps in a container what is not the image's."""


def open_inside(root: int, path: str, flags: int) -> int:
    """Open a path as it is seen inside, in mounts too; raises OSError.  Nothing may be changed."""
    return syscalls.openat2(root, path, flags, syscalls.RESOLVE_IN_ROOT)


def open_own(root: int, path: str, flags: int) -> int:
    """Open a path of the image or its tmpfs; raises OSError, EXDEV where a mount is in the way.

    What root writes, removes and reads goes through here: a link of the image must not lead it
    into the host's file systems that are mounted inside already.
    """
    return syscalls.openat2(root, path, flags, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_XDEV)


def ensure_directory(root: int, path: str) -> int:
    """Open (O_PATH) a directory inside to mount on; made in the image's own tree where missing.

    Raises UserError when the image has something else there, SiteError when it would have to be
    made in another mount, OSError otherwise.
    """
    try:
        return open_inside(root, path, DIRECTORY)
    except FileNotFoundError:
        os.close(ensure_own_directory(root, path))
        return open_inside(root, path, DIRECTORY)
    except NotADirectoryError:
        raise _no_directory(path) from None


def ensure_own_directory(root: int, path: str) -> int:
    """Open (O_PATH) a directory of the image's own tree, made with its parents where missing.

    Raises what `ensure_directory` does.
    """
    try:
        return open_own(root, path, DIRECTORY)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        raise _no_directory(path) from None
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise _in_a_mount(path) from None
    parent, name = os.path.split(path.rstrip("/"))
    above = ensure_own_directory(root, parent)
    try:
        _make_directory(above, name)
    finally:
        os.close(above)
    return open_own(root, path, DIRECTORY)


def ensure_file(root: int, path: str) -> int:
    """Open (O_PATH) a file inside to mount on, made empty in the image's own tree where missing."""
    try:
        return open_inside(root, path, os.O_PATH)
    except FileNotFoundError:
        write_file(root, path, b"")
    return open_inside(root, path, os.O_PATH)


def write_file(root: int, path: str, content: bytes, mode: int = 0o644) -> None:
    """Put a file in place of whatever the image has there.

    The old entry is removed, not opened: images have dangling links as /etc/resolv.conf.
    """
    parent, name = os.path.split(path)
    above = ensure_own_directory(root, parent)
    try:
        _replace_file(above, name, content, mode)
    finally:
        os.close(above)


def make_link(root: int, path: str, text: str) -> None:
    """Put a symbolic link in place of whatever the image has there."""
    parent, name = os.path.split(path)
    above = ensure_own_directory(root, parent)
    try:
        _remove(above, name)
        os.symlink(text, name, dir_fd=above)
    finally:
        os.close(above)


def read_file(root: int, path: str, limit: int = 1 << 20) -> bytes:
    """Read a regular file of the image, at most `limit` bytes; anything else reads as empty.

    Looked at before it is opened for reading: opening a device can do things.
    """
    try:
        found = open_own(root, path, os.O_PATH)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return b""
        with open(f"/proc/self/fd/{found}", "rb") as file:
            return file.read(limit)
    finally:
        os.close(found)


def open_source(path: str) -> int:
    """Open (O_PATH) the source of a mount on the host; /proc's magic links are not followed."""
    root = os.open("/", DIRECTORY)
    try:
        return syscalls.openat2(root, path, os.O_PATH, syscalls.RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(root)


@contextmanager
def rights_of(user: User) -> Iterator[None]:
    """Access files with the rights of `user`, as the kernel checks them, inside the block.

    Changing the fsuid from 0 takes CAP_DAC_OVERRIDE and its kin from the effective set, and gives
    them back on return (capabilities(7)); CAP_SYS_ADMIN, needed to mount, stays.
    """
    groups = os.getgroups()
    _become(user.uid, user.gid, user.groups)
    try:
        yield
    finally:
        _become(0, 0, groups)


def _become(uid: int, gid: int, groups: Sequence[int]) -> None:
    os.setgroups(list(groups))
    syscalls.setfsgid(gid)
    syscalls.setfsuid(uid)


def _no_directory(path: str) -> UserError:
    return UserError(f"cannot mount on {path}: it is not a directory in the image")


def _in_a_mount(path: str) -> HpcwrapError:
    """What is told of a directory that would have to be made in a mount of the host."""
    if f"{path}/".startswith(f"{OWN}/"):
        # Nobody mounts there but us: a link of the image has led out of it.
        return UserError(
            f"cannot use the image: its {OWN}, a path of hpcwrap's own, leads into a mount of the "
            "host",
            "remove it from the image",
        )
    reason = f"cannot make {path} inside: it is in a mount of the host"
    return SiteError(reason, "make it on the host")


def _make_directory(above: int, name: str) -> None:
    try:
        os.mkdir(name, MOUNT_POINT_MODE, dir_fd=above)
    except FileExistsError:
        # A dangling link of the image: nothing can be mounted through it.
        if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=above)
            os.mkdir(name, MOUNT_POINT_MODE, dir_fd=above)


def _replace_file(above: int, name: str, content: bytes, mode: int) -> None:
    _remove(above, name)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=above)
    with open(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, mode)


def _remove(above: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=above)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EISDIR:
            raise
        raise UserError(f"cannot write {name}: it is a directory in the image") from None
