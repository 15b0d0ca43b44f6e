"""The only ctypes: namespaces and mounts, each wrapper named as its system call.

Numbers are those of <linux/sched.h>, <linux/mount.h> and <linux/prctl.h>.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NODE_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

MNT_DETACH = 2

PR_SET_PDEATHSIG = 1

# x86_64 and aarch64 have different numbers for the one call that glibc does not wrap.
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "ppc64le": 203}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Give this process namespaces of its own; with CLONE_NEWPID, its next child (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespaces `flags` of the process behind the pidfd `fd` (Linux 5.8, setns(2))."""
    _check(_libc.setns(fd, flags), "setns")


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    _check(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount `source` of file system type `kind` on `target` (mount(2))."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    result = _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data))
    _check(result, f"mount {kind or source} on {target}")


def umount2(target: str, flags: int) -> None:
    """Unmount `target` (umount2(2))."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace (pivot_root(2))."""
    number = SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, os.fsencode(new_root), os.fsencode(put_old)), "pivot_root")


def set_parent_death_signal(number: int) -> None:
    """Ask the kernel for signal `number` when our parent dies (PR_SET_PDEATHSIG, prctl(2))."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number)), "prctl PR_SET_PDEATHSIG")
