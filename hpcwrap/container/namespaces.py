"""Pins: namespaces that stay while no process is in them.

A namespace is kept by a bind mount of its file (nsfs).  The kernel lets a mount namespace be
bound only into an older one (it compares their numbers, to keep references from going in
circles), and since Linux 6.14 or so it numbers namespaces in batches for each CPU.  So a
namespace that is made now may count as the older one, and the bind fails with EINVAL, for as long
as it is made on a CPU with a lower batch: docs/decisions/0040-namespace-pins.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import Iterator, List

from hpcwrap import paths
from hpcwrap.container import syscalls
from hpcwrap.errors import NodeError


def ensure_jobs_directory(jobs: str = paths.JOBS) -> None:
    """Make the directory of all jobs, once a boot: a mount of its own that propagates nowhere.

    nsfs files can only be bound in a private mount.  Raises NodeError.
    """
    try:
        if is_private_mount(jobs):
            return
        os.makedirs(jobs, mode=0o711, exist_ok=True)
        with locked(f"{jobs}.lock"):
            os.chmod(os.path.dirname(jobs), 0o755)
            os.chmod(jobs, 0o711)
            if not is_mount_point(jobs):
                syscalls.mount(jobs, jobs, None, syscalls.MS_BIND)
            syscalls.mount("none", jobs, None, syscalls.MS_PRIVATE)
    except OSError as error:
        raise NodeError(f"cannot prepare {jobs}: {error.strerror}") from error


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold flock(2) on a file: prologs of one node start at the same time after a boot.

    A second mount on the first would hide the pins that were made in between.  The file is root's
    alone: whoever can open it, can stop every prolog.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def is_mount_point(path: str) -> bool:
    """True when something is mounted on the path in this process's mount namespace."""
    return bool(_mounts_on(path))


def is_private_mount(path: str) -> bool:
    """True when a mount that neither gives nor takes what is mounted elsewhere is on the path."""
    return any(" shared:" not in line and " master:" not in line for line in _mounts_on(path))


def _mounts_on(path: str) -> List[str]:
    """Lines of mountinfo: a bind mount of a directory on itself has its parent's device number."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [line for line in file if line.split(" ", 5)[4] == path]


def pin(process: int, kind: str, path: str) -> bool:
    """Bind the namespace `kind` (mnt, user) of a process to a file; False on EINVAL."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    try:
        syscalls.mount(f"/proc/{process}/ns/{kind}", path, None, syscalls.MS_BIND)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def is_pinned(path: str) -> bool:
    """Whether a path leads to a namespace: by a bind mount, or to that of a holder process."""
    return is_mount_point(path) or (os.path.islink(path) and os.path.exists(path))


def unpin(path: str) -> None:
    """Drop a pin; nothing there is fine.  The kernel frees what no process uses any more."""
    unmount(path)
    with suppress(FileNotFoundError):
        os.unlink(path)


def unmount(path: str) -> None:
    """Take all that is mounted on a path away from it; nothing there is fine."""
    for _ in range(8):
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError:
            break


def each_cpu(memory: str) -> Iterator[int]:
    """Move this process from CPU to CPU of those that it may use, the remembered one first."""
    allowed = os.sched_getaffinity(0)
    first = recall_cpu(memory)
    for cpu in sorted(allowed, key=lambda cpu: (cpu != first, cpu)):
        os.sched_setaffinity(0, {cpu})
        yield cpu
    os.sched_setaffinity(0, allowed)


def recall_cpu(memory: str) -> int:
    """The CPU that the last pinned namespace of this node was made on; -1 when none is known."""
    try:
        return int(os.readlink(memory))
    except (OSError, ValueError):
        return -1


def remember_cpu(memory: str, cpu: int) -> None:
    """Spare the next build tries that fail: which CPU is good changes once in a while only.

    A link whose text is the number: made in one call, read in one call.  One that a killed prolog
    has not renamed is renamed by the next.
    """
    if recall_cpu(memory) != cpu:
        with suppress(OSError):
            with suppress(FileExistsError):
                os.symlink(str(cpu), f"{memory}.new")
            os.rename(f"{memory}.new", memory)
