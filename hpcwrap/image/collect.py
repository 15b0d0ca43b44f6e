"""Collect garbage: what a store holds and nobody needs.

`find_garbage` looks and `collect` removes, item by item: what one removal frees, the next look
sees.  With dry_run only the looking is done.  What is in use, locked or named by an environment
stays, and a kill at any moment leaves what the next run finds.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Callable, Collection, FrozenSet, Iterator, List, NamedTuple

from hpcwrap import log
from hpcwrap.errors import HpcwrapError
from hpcwrap.human import format_age, format_size
from hpcwrap.image import lease
from hpcwrap.image.cache import last_use
from hpcwrap.image.digest import ALGORITHM, hex_digits, is_digest
from hpcwrap.image.layers import trim
from hpcwrap.image.lease import Lease
from hpcwrap.image.remove import hidden_path, loop_device_of, remove_unused, take_out
from hpcwrap.image.store import Image, Link, Store, file_name
from hpcwrap.image.workspace import (
    HIDDEN,
    BusyError,
    is_free,
    is_left,
    leftovers,
    locked,
    remove_leftover,
    remove_lock,
)

DAY = 86400.0
WAIT = 10.0


class Rules(NamedTuple):
    """What may go.

    needed: canonical texts of the references that environments name.  days: how long an image
    stays unused.  size: bytes of images in the store, 0 for no bound; layers: of the layer cache.
    node and living: this node's name and its jobs; leases of other nodes end after lease_days.
    """

    needed: FrozenSet[str] = frozenset()
    days: float = 30.0
    size: int = 0
    layers: int = 0
    node: str = ""
    living: Collection[str] = ()
    lease_days: float = 30.0

    def is_stale(self, one: Lease) -> bool:
        """Whether the job of a lease has certainly ended."""
        if one.node == self.node:
            return lease.is_lost(one, self.node, self.living)
        return one.since < time.time() - self.lease_days * DAY


class Item(NamedTuple):
    """One thing to remove, its bytes, and why; remove() says whether it went."""

    kind: str
    name: str
    size: int
    reason: str
    remove: Callable[[], bool]


def collect(store: Store, rules: Rules, *, dry_run: bool = False) -> Iterator[Item]:
    """Remove garbage; what was removed, or would be with dry_run, one after the other."""
    for item in find_garbage(store, rules):
        if dry_run or _is_removed(item):
            yield item


def find_garbage(store: Store, rules: Rules) -> Iterator[Item]:
    """What nobody needs: leases first, because they keep images."""
    return chain(
        _leases(store, rules),
        _images(store, rules),
        _references(store, rules),
        _half_removed(store, rules),
        _leftovers(store),
        _aside(store, rules),
        _layers(store, rules),
        unused_locks(store),
    )


def _is_removed(item: Item) -> bool:
    try:
        return item.remove()
    except (OSError, HpcwrapError) as error:
        log.warn(f"cannot remove the {item.kind} {item.name}: {error}")
        return False


def mend(store: Store) -> None:
    """End what killed processes began, and remove nothing else: for a node's cache, which nobody
    collects.
    """
    for item in chain(unfinished(store), unused_locks(store)):
        _is_removed(item)


def unfinished(store: Store) -> Iterator[Item]:
    """What killed processes began and nobody works on any more."""
    return chain(_half_removed(store, Rules()), _leftovers(store))


def in_use(store: Store, rules: Rules, digest: str) -> bool:
    """Whether a job uses an image, as far as this node can know."""
    held = [one for one in lease.holders(store, digest) if not rules.is_stale(one)]
    return bool(held) or loop_device_of(store.squashfs_path(digest)) is not None


def _leases(store: Store, rules: Rules) -> Iterator[Item]:
    for digest, one in lease.stale_leases(store, rules.is_stale):
        name = f"job {one.job} on {one.node}"
        reason = f"the job has ended; it began {format_age(one.since)}"
        yield Item("lease", name, 0, reason, partial(_drop, store, digest, one))


def _images(store: Store, rules: Rules) -> Iterator[Item]:
    """Those unused for long, then the longest unused of the rest if they are too much."""
    links = [store.find_link(key) for key in rules.needed]
    needed = {link.digest for link in links if link}
    images = sorted(store.images()[0], key=last_use)
    left = []
    for image in images:
        old = image.digest not in needed and time.time() - last_use(image) >= rules.days * DAY
        if old and not in_use(store, rules, image.digest):
            yield _image_item(store, image, f"last used {format_age(last_use(image))}")
        else:
            left.append(image)
    yield from _too_much(store, rules, left)


def _too_much(store: Store, rules: Rules, images: List[Image]) -> Iterator[Item]:
    total = sum(image.size for image in images)
    for image in images:
        if not rules.size or total <= rules.size:
            return
        if not in_use(store, rules, image.digest):
            total -= image.size
            reason = f"the store is above {format_size(rules.size)}"
            yield _image_item(store, image, reason)


def _image_item(store: Store, image: Image, reason: str) -> Item:
    name = f"{image.reference} ({hex_digits(image.digest)[:12]})"
    return Item("image", name, image.size, reason, partial(remove_unused, store, image.digest))


def _references(store: Store, rules: Rules) -> Iterator[Item]:
    """References whose image has gone and that nobody pulled again for as long as images stay."""
    for link in store.links()[0]:
        gone = not os.path.exists(store.squashfs_path(link.digest))
        old = time.time() - link.resolved >= rules.days * DAY
        needed = link.owner is None and link.reference in rules.needed
        if gone and old and not needed:
            reason = f"its image has gone; it was pulled {format_age(link.resolved)}"
            yield Item("reference", link.reference, 0, reason, partial(_forget, store, link))


def _half_removed(store: Store, rules: Rules) -> Iterator[Item]:
    """Squashfs files and hidden documents without an image: a kill fell between two steps."""
    for digest in _half_there(store):
        path = store.squashfs_path(digest)
        if _image_lock_is_free(store, digest) and not in_use(store, rules, digest):
            reason = "left by a killed pull or removal"
            yield Item("leftover", path, _size(path), reason, partial(_finish, store, digest))


def _half_there(store: Store) -> List[str]:
    names = set(os.listdir(store.images_directory))
    alone = {name[:-5] for name in names if name.endswith(".sqsh")}
    alone -= {name[:-5] for name in names if name.endswith(".json")}
    tail = f".json{HIDDEN}"
    hidden = {name[1 : -len(tail)] for name in names if name.endswith(tail)}
    digests = [f"{ALGORITHM}:{digits}" for digits in sorted(alone | hidden)]
    return [digest for digest in digests if is_digest(digest)]


def _leftovers(store: Store) -> Iterator[Item]:
    for path in leftovers(store):
        if is_left(store, path):
            reason = "left by a killed process"
            yield Item(
                "leftover", path, _size(path), reason, partial(_remove_leftover, store, path)
            )


def _aside(store: Store, rules: Rules) -> Iterator[Item]:
    """Files that were set aside, ``<epoch in ns>.<name>`` (publish.py), once no job has them."""
    with suppress(FileNotFoundError):
        for item in os.scandir(store.aside_directory):
            since, _, name = item.name.partition(".")
            age = time.time() - int(since if since.isdigit() else 0) / 1e9
            digest = f"{ALGORITHM}:{name.partition('.')[0]}"
            old = age >= rules.days * DAY
            held = in_use(store, rules, digest) or loop_device_of(item.path)
            if old and not held:
                reason = "set aside; no job uses it any more"
                yield Item(
                    "aside", item.path, _size(item.path), reason, partial(_unlink, item.path)
                )


def _layers(store: Store, rules: Rules) -> Iterator[Item]:
    over = _size(store.blobs_directory) - rules.layers
    if over > 0:
        yield Item(
            "layers",
            store.blobs_directory,
            over,
            f"the layer cache is above {format_size(rules.layers)}",
            partial(_trim, store, rules.layers),
        )


def unused_locks(store: Store) -> Iterator[Item]:
    """Files of locks whose image or reference has gone."""
    for name in sorted(os.listdir(store.locks_directory)):
        path = os.path.join(store.locks_directory, name)
        if not _has_subject(store, name) and is_free(path):
            yield Item("lock", path, 0, "its subject has gone", partial(remove_lock, store, name))


def _has_subject(store: Store, lock: str) -> bool:
    kind, dash, rest = lock.partition("-")
    subjects = {
        "image": [f"{rest}.sqsh", f"{rest}.json", f".{rest}.json{HIDDEN}"],
        "ref": [rest],
        "refresh": [rest],
        "pull": [lock],
    }
    directories = {
        "image": store.images_directory,
        "ref": store.refs_directory,
        "refresh": store.refs_directory,
        "pull": store.tmp_directory,
    }
    if not dash or kind not in subjects:
        return True
    return any(os.path.lexists(os.path.join(directories[kind], name)) for name in subjects[kind])


def _drop(store: Store, digest: str, one: Lease) -> bool:
    lease.drop(store, digest, one.node, one.job)
    return True


def _forget(store: Store, link: Link) -> bool:
    try:
        with locked(store, f"ref-{file_name(link.reference, link.owner)}", 0.0):
            now = store.find_link(link.reference, link.owner)
            return now == link and _unlink(store.ref_path(link.reference, link.owner))
    except BusyError:
        return False


def _finish(store: Store, digest: str) -> bool:
    """End a removal that was begun; drop the hidden document where the image was pulled again."""
    try:
        with locked(store, f"image-{hex_digits(digest)}", 0.0):
            if os.path.exists(store.document_path(digest)):
                return _unlink(hidden_path(store, digest))
            return take_out(store, digest)
    except BusyError:
        return False


def _remove_leftover(store: Store, path: str) -> bool:
    with locked(store, "tmp.lock", WAIT):
        return remove_leftover(store, path)


def _trim(store: Store, limit: int) -> bool:
    trim(store.blobs_directory, limit)
    return True


def _unlink(path: str) -> bool:
    with suppress(FileNotFoundError):
        os.unlink(path)
        return True
    return False


def _image_lock_is_free(store: Store, digest: str) -> bool:
    path = os.path.join(store.locks_directory, f"image-{hex_digits(digest)}")
    return is_free(path) or not os.path.exists(path)


def _size(path: str) -> int:
    """Bytes of a file, or of all files below a directory; 0 when it is not there."""
    size, paths = 0, [path]
    # No recursion: the image user may have made directories of any depth.
    while paths:
        path = paths.pop()
        with suppress(OSError):
            found = os.lstat(path)
            if stat.S_ISDIR(found.st_mode):
                paths += [item.path for item in os.scandir(path)]
            else:
                size += found.st_size
    return size
