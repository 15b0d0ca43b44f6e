"""Loop devices: one for each image file of the node, shared by its containers.

Two mounts of one image share the superblock, its page cache and its dentries when they share
the loop device, so a device that is already bound to the file is taken again.  Every device has
LO_FLAGS_AUTOCLEAR: the kernel frees it with its last mount, whatever becomes of us.
See loop(4) and linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Iterator, NamedTuple, Optional

from hpcwrap.errors import NodeError
from hpcwrap.textfile import read_text

LOOP_CONFIGURE, LOOP_GET_STATUS64, LOOP_CTL_GET_FREE = 0x4C0A, 0x4C05, 0x4C82
LOOP_CLR_FD = 0x4C01
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4

# struct loop_info64: device inode rdevice offset sizelimit (u64) number encrypt_type
# encrypt_key_size flags (u32) file_name crypt_name (64) encrypt_key (32) init (2 x u64)
INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd block_size (u32), loop_info64, 8 reserved u64
CONFIG_HEAD = struct.Struct("=2I")
CONFIG_TAIL = bytes(64)

TRIES = 64


class Device(NamedTuple):
    """A loop device held open: closing `fd` after the mount leaves it to the mount."""

    path: str
    fd: int


def attach(image: int, name: str) -> Device:
    """Bind an open file to a loop device, read-only, or find the device that it is bound to.

    `name` is the file's path, shown by losetup(8).  Raises NodeError when the node has no loop
    device to give.
    """
    return _find(image) or _bind_free(image, name)


def goes_by_itself(path: str) -> bool:
    """Whether the kernel frees a device with its last use, as all those that we bind."""
    return read_text(f"/sys/block/{os.path.basename(path)}/loop/autoclear").strip() != "0"


def detach(path: str) -> None:
    """Free a device; one that is mounted goes with its last mount (loop(4), LOOP_CLR_FD).

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD)
    finally:
        os.close(fd)


def _find(image: int) -> Optional[Device]:
    wanted = os.fstat(image)
    for number in _numbers():
        if not os.path.exists(f"/sys/block/loop{number}/loop"):
            continue
        device = _open(number)
        if device is None:
            continue
        if _serves(device.fd, wanted):
            return device
        os.close(device.fd)
    return None


def _serves(fd: int, wanted: os.stat_result) -> bool:
    """True when the device is bound to this very file, whole, read-only and auto-clearing.

    Asked while we hold the device open: an auto-clearing device cannot go away any more.
    """
    try:
        info = INFO.unpack(fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(INFO.size)))
    except OSError:
        return False
    device, inode, _, offset, limit, _, _, _, flags = info[:9]
    both = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
    return (device, inode) == (wanted.st_dev, wanted.st_ino) and (
        offset == 0 and limit == 0 and flags & both == both
    )


def _bind_free(image: int, name: str) -> Device:
    """Take a free device.  Others may take the same one first (EBUSY), hence the tries."""
    info = INFO.pack(
        *(0,) * 8, LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR, os.fsencode(name)[:63], b"", b"", 0, 0
    )
    config = CONFIG_HEAD.pack(image, 0) + info + CONFIG_TAIL
    for _ in range(TRIES):
        device = _open(_free_number())
        if device is None:
            continue
        try:
            fcntl.ioctl(device.fd, LOOP_CONFIGURE, config)
            return device
        except OSError as error:
            os.close(device.fd)
            if error.errno != errno.EBUSY:
                raise NodeError(f"cannot bind {name} to {device.path}: {error.strerror}") from error
    raise NodeError(f"cannot find a free loop device for {name}", "see `losetup -a`")


def _free_number() -> int:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NodeError(
            f"cannot open /dev/loop-control: {error.strerror}", "is the kernel module loop loaded?"
        ) from error
    try:
        return fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    except OSError as error:
        raise NodeError(f"cannot get a free loop device: {error.strerror}") from error
    finally:
        os.close(control)


def _open(number: int) -> Optional[Device]:
    path = f"/dev/loop{number}"
    try:
        return Device(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return None


def _numbers() -> Iterator[int]:
    for name in os.listdir("/sys/block"):
        if name.startswith("loop") and name[4:].isdigit():
            yield int(name[4:])
