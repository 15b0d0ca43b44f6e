"""The kernel's calls that Python lacks; the only module of hpcwrap that uses ctypes.

Each wrapper carries its system call's name, takes numbers and paths as the manual page has them,
and raises OSError with the errno and the object.  Numbers of the calls that the C library does
not wrap are the same on every architecture since Linux 5.1 (asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from typing import Optional

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

# sys/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_RDONLY = 0x2, 0x4, 0x8, 0x1
MS_BIND, MS_REC, MS_SLAVE, MS_PRIVATE = 0x1000, 0x4000, 1 << 19, 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8

# linux/mount.h
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8

# linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x01, 0x02, 0x10

# linux/fcntl.h
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000

# linux/prctl.h
PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 4, 15, 38

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_OPENAT2, SYS_MOUNT_SETATTR = 428, 429, 437, 442

OPENAT2_TRIES = 1000

TOO_OLD = "this kernel lacks the call (hpcwrap needs Linux 5.12 or newer)"


class OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def check(result: int, what: str) -> int:
    """Raise OSError with the thread's errno when a call returned a negative number."""
    if result < 0:
        number = ctypes.get_errno()
        reason = TOO_OLD if number == errno.ENOSYS else os.strerror(number)
        raise OSError(number, reason, what)
    return result


def unshare(flags: int) -> None:
    """unshare(2): leave the namespaces that `flags` names for new ones."""
    check(libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace that `fd` is open on."""
    check(libc.setns(fd, kind), "setns")


def mount(
    source: str, target: str, kind: Optional[str], flags: int, data: Optional[str] = None
) -> None:
    """mount(2), the classic call."""
    check(
        libc.mount(
            source.encode(),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            flags,
            None if data is None else os.fsencode(data),
        ),
        target,
    )


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    check(libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    check(libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def openat2(dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open a path under rules on how it may be resolved; the file is close-on-exec.

    The kernel gives up with EAGAIN where a path holds ``..`` and anything on the machine is renamed
    or mounted meanwhile: it cannot tell then whether the way led out.  Images are full of such
    links, and busy nodes of such moments.
    """
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(OPENAT2_TRIES):
        with suppress(BlockingIOError):
            return _openat2(dirfd, path, how)
    return _openat2(dirfd, path, how)


def _openat2(dirfd: int, path: str, how: OpenHow) -> int:
    return check(
        libc.syscall(
            ctypes.c_long(SYS_OPENAT2),
            ctypes.c_int(dirfd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def open_tree(fd: int, flags: int) -> int:
    """open_tree(2) of the object that `fd` is open on: a detached copy of its mount."""
    return check(
        libc.syscall(
            ctypes.c_long(SYS_OPEN_TREE),
            ctypes.c_int(fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(flags | AT_EMPTY_PATH | OPEN_TREE_CLOEXEC),
        ),
        "open_tree",
    )


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach a detached mount on the object that `target` is open on."""
    check(
        libc.syscall(
            ctypes.c_long(SYS_MOVE_MOUNT),
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(target),
            ctypes.c_char_p(b""),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH),
        ),
        "move_mount",
    )


def mount_setattr(fd: int, attributes: int, *, recursive: bool) -> None:
    """mount_setattr(2): set MOUNT_ATTR_* on the mount that `fd` is open on."""
    attr = MountAttr(attributes, 0, 0, 0)
    check(
        libc.syscall(
            ctypes.c_long(SYS_MOUNT_SETATTR),
            ctypes.c_int(fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        ),
        "mount_setattr",
    )


def setfsuid(uid: int) -> None:
    """setfsuid(2): whose rights file access has; leaving 0 also gives up the file capabilities.

    The call reports no errors; calling it again with an impossible id returns the present one.
    """
    libc.setfsuid(ctypes.c_uint(uid))
    if libc.setfsuid(ctypes.c_uint(0xFFFFFFFF)) != uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), f"setfsuid {uid}")


def setfsgid(gid: int) -> None:
    """setfsgid(2), checked as setfsuid is."""
    libc.setfsgid(ctypes.c_uint(gid))
    if libc.setfsgid(ctypes.c_uint(0xFFFFFFFF)) != gid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), f"setfsgid {gid}")


def set_no_new_privs() -> None:
    """prctl(2) PR_SET_NO_NEW_PRIVS: exec gives no more rights from here on."""
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")


def set_dumpable() -> None:
    """prctl(2) PR_SET_DUMPABLE: let the process's own user look into /proc/PID/ns."""
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl PR_SET_DUMPABLE")


def set_process_name(name: str) -> None:
    """prctl(2) PR_SET_NAME: what ps shows."""
    check(libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0), "prctl PR_SET_NAME")
