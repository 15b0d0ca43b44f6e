"""Leases: which job of which node uses an image of a store that many nodes share.

    STORE/leases/<hex>/<node>:<job>     an empty file; its mtime is when the job began

A prolog makes the lease first and looks then whether the image is there; who removes an image
hides it first and looks then for leases (remove.py).  So one of the two sees the other, whatever
the order (docs/decisions/0016).  Light: the warm prolog and the epilog import it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Callable, Collection, Iterator, List, NamedTuple, Tuple

from hpcwrap.image.digest import ALGORITHM, hex_digits
from hpcwrap.image.store import Store

EXPORT = "export-"
"""In the job's place for `hpcwrap image export`, before the number of its process."""

ATTEMPTS = 100
YOUNG = 86400.0
"""Seconds that a prolog may take at most: the largest pull_timeout."""


class Lease(NamedTuple):
    """A job that uses an image; `since` is an epoch in s."""

    node: str
    job: str
    since: float


def hold(store: Store, digest: str, node: str, job: str) -> bool:
    """Take a lease; look for the image after that, and after `store.look_anew()`.

    Taking it again does nothing.  False where the store cannot be written: images of such a store
    are not kept from being removed elsewhere.
    """
    directory = _directory(store, digest)
    for _ in range(ATTEMPTS):
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            os.close(os.open(os.path.join(directory, _name(node, job)), flags, 0o644))
            return True
        except FileNotFoundError:
            continue  # the last lease was dropped, and its directory, since we made that
        except OSError:
            return False
    return False


def drop(store: Store, digest: str, node: str, job: str) -> None:
    """Give a lease back; one that is not there, or cannot be removed, is no error."""
    directory = _directory(store, digest)
    with suppress(OSError):
        os.unlink(os.path.join(directory, _name(node, job)))
        os.rmdir(directory)


def holders(store: Store, digest: str) -> List[Lease]:
    """The jobs that use an image, as their leases say, longest first."""
    return sorted(_leases(_directory(store, digest)), key=lambda lease: lease.since)


def release_unheld(store: Store, digest: str) -> bool:
    """Whether no lease of the image is left: the server itself says so, no cache of a client.

    rmdir(2) fails while there is a name in the directory.
    """
    try:
        os.rmdir(_directory(store, digest))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def leased(store: Store) -> List[str]:
    """The hex digits of all images that have leases, or had."""
    try:
        return sorted(os.listdir(store.leases_directory))
    except FileNotFoundError:
        return []


def is_lost(lease: Lease, node: str, living: Collection[str]) -> bool:
    """Whether a lease of this node is none of a living job.

    A young one counts as living: a prolog takes its lease before it makes the job's directory.
    """
    mine = lease.node == node and lease.job not in living
    return mine and time.time() - lease.since > YOUNG


def stale_leases(store: Store, is_stale: Callable[[Lease], bool]) -> List[Tuple[str, Lease]]:
    """Digest and lease of all leases for which is_stale() is true."""
    digests = [f"{ALGORITHM}:{digits}" for digits in leased(store)]
    return [
        (digest, lease) for digest in digests for lease in holders(store, digest) if is_stale(lease)
    ]


def _directory(store: Store, digest: str) -> str:
    return os.path.join(store.leases_directory, hex_digits(digest))


def _leases(directory: str) -> Iterator[Lease]:
    with suppress(FileNotFoundError):
        for item in os.scandir(directory):
            node, colon, job = item.name.partition(":")
            with suppress(FileNotFoundError):
                if colon:
                    yield Lease(_unescaped(node), _unescaped(job), item.stat().st_mtime)


def _name(node: str, job: str) -> str:
    return f"{_escaped(node)}:{_escaped(job)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F").replace(":", "%3A")


def _unescaped(text: str) -> str:
    return text.replace("%3A", ":").replace("%2F", "/").replace("%25", "%")
