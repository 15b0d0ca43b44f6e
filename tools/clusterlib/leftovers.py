"""Loop devices that outlive the nodes: those that somebody attached without autoclear.

All else of a node dies with its process 1.  A loop device belongs to the machine, and one that was
attached by losetup(8), not by mount(8), stays attached and keeps its file system alive.
"""

from __future__ import annotations

import fcntl
import glob
import os
import struct
from contextlib import suppress
from typing import Iterable, NamedTuple, Optional

# <linux/loop.h>; struct loop_info64 begins with lo_device and lo_inode, the numbers that stat(2)
# gives for the backing file.
LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO64_SIZE = 232

# The file systems that a node has for itself, by a path on each.  A file that init.py wrote stands
# for the root: an overlay gives a file, unlike a directory, the device number of its layer.
OWN_FILE_SYSTEMS = ("/etc/hostname", "/tmp", "/run", "/dev/shm")


class Loop(NamedTuple):
    """A loop device and the file behind it; the file's path means nothing outside its node."""

    path: str
    device: int
    inode: int


def own_devices(pids: Iterable[int]) -> list[int]:
    """Device numbers of the file systems that these nodes have for themselves."""
    roots = [f"/proc/{pid}/root" for pid in pids]
    return [os.stat(root + path).st_dev for root in roots for path in OWN_FILE_SYSTEMS]


def attached_loops() -> list[Loop]:
    """All loop devices of the machine that have a file behind them."""
    names = sorted(path.split("/")[3] for path in glob.glob("/sys/block/loop*/loop"))
    found = [read_loop(f"/dev/{name}") for name in names]
    return [loop for loop in found if loop]


def read_loop(path: str) -> Optional[Loop]:
    """What is behind one loop device; None when nothing is."""
    status = bytearray(LOOP_INFO64_SIZE)
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, LOOP_GET_STATUS64, status)
        finally:
            os.close(fd)
        return Loop(path, *struct.unpack_from("=QQ", status))
    return None


def loops_of(state: str, devices: Iterable[int]) -> list[Loop]:
    """Loop devices over a file in the state directory or on a node's own file systems."""
    loops = attached_loops()
    own = set(devices)
    shared = os.stat(state).st_dev
    inodes = set(inodes_below(state)) if any(loop.device == shared for loop in loops) else set()
    return [
        loop
        for loop in loops
        if loop.device in own or (loop.device == shared and loop.inode in inodes)
    ]


def inodes_below(directory: str) -> Iterable[int]:
    """Inode numbers of all files below a directory."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from inodes_below(entry.path)
        else:
            yield entry.inode()


def detach(loops: Iterable[Loop]) -> None:
    """Detach these devices, unless one is gone or serves another file by now."""
    for loop in loops:
        if read_loop(loop.path) == loop:
            clear(loop.path)


def clear(path: str) -> None:
    """Detach a loop device; the kernel does it later if the device is still open or mounted."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, LOOP_CLR_FD)
        finally:
            os.close(fd)
