"""The layer cache: blobs that came with one image and are there for the next.

A directory of the image user in the store, one file a blob, named by its digest.  A pull gets hard
links, so that nothing is copied and nothing that is dropped meanwhile goes away under it.  The
cache never fails a pull: what cannot be linked is downloaded.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Iterable, List, Optional, Tuple

from hpcwrap import run
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.manifest import Blob

READ_SIZE = 1 << 20


def prepare_cache(directory: str, identity: Optional[run.Identity]) -> None:
    """Make the cache where it is missing, and the image user's; for who may write to the store.

    Raises OSError.
    """
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    if identity is not None and os.geteuid() == 0:
        # By descriptor and without following links: the image user could have put one there.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(descriptor, identity.uid, identity.gid)
        finally:
            os.close(descriptor)


def offer(cache: str, blobs: Iterable[Blob], directory: str) -> List[Blob]:
    """Link those of the blobs that the cache has into a directory; returns them.

    Each is read and compared with its digest: skopeo takes what lies there as it is.  What is
    not what its name says is dropped from the cache.
    """
    from concurrent.futures import ThreadPoolExecutor

    # OpenSSL hashes without Python's lock: as many blobs at a time as there are CPUs.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        offered = threads.map(lambda blob: (blob, _offer(cache, blob, directory)), blobs)
        return [blob for blob, there in offered if there]


def keep(cache: str, blobs: Iterable[Blob], directory: str) -> None:
    """Link blobs that are whole from a directory into the cache, as far as they are not in it."""
    for blob in blobs:
        name = hex_digits(blob.digest)
        with suppress(OSError):
            os.link(os.path.join(directory, name), os.path.join(cache, name))


def trim(cache: str, limit: int) -> None:
    """Drop the blobs that were used the longest ago until no more than `limit` bytes are left."""
    blobs = sorted(_contents(cache), reverse=True)
    total = 0
    for _, size, path in blobs:
        total += size
        if total > limit:
            _drop(path)


def _offer(cache: str, blob: Blob, directory: str) -> bool:
    cached, linked = (os.path.join(at, hex_digits(blob.digest)) for at in (cache, directory))
    try:
        os.link(cached, linked, follow_symlinks=False)
    except OSError:
        return False
    if _is_whole(linked, blob):
        os.utime(linked)
        return True
    _drop(cached, linked)
    return False


def _contents(cache: str) -> Iterable[Tuple[float, int, str]]:
    """Last use (seconds since the epoch), size in bytes and path of each file in the cache."""
    with suppress(OSError), os.scandir(cache) as items:
        for item in items:
            with suppress(FileNotFoundError):
                found = item.stat(follow_symlinks=False)
                yield found.st_mtime, found.st_size, item.path


def _is_whole(path: str, blob: Blob) -> bool:
    import hashlib

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != blob.size:
            return False
        digest = hashlib.sha256()
        while chunk := file.read(READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest() == hex_digits(blob.digest)


def _drop(*paths: str) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)
