"""A node's cache: a second store, on the node's own disk, with copies of the site's images.

An image is copied once a node, whatever number of jobs begins there at once.  What the jobs of
this node do not use leaves, the longest unused first, so that the rest fits the site's bound.
Light where the copy is there already: the warm prolog comes by.
"""

from __future__ import annotations

import os
import time
from typing import Collection, List

from hpcwrap import log
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.store import Image, Store, touch_used

WAIT_SECONDS = 300.0
"""As long waits a prolog for another that copies; then its job runs from the site's store."""

CHUNK = 64 << 20
LEFT_FREE = 0.05
"""Part of the disk that a cache leaves free, whatever the site's bound says."""


def bring(site: Store, cache: Store, image: Image, limit_bytes: int) -> Image:
    """The node's copy of an image, made if need be; the site's image where there can be none.

    Whose the image is, says the site: check that before.  Raises SiteError when the site's
    squashfs is damaged; that a copy cannot be made is a warning only.
    """
    touch_used(image)  # the site removes by last use, too
    if not _is_ours(cache.root):
        log.warn(f"does not use the cache {cache.root}: others than root may write to it")
        return image
    found = cache.find_digest(image.digest, image.reference)
    if found is None:
        found = _try_to_copy(site, cache, image, limit_bytes)
    return found._replace(uids=image.uids)


def evict(store: Store, limit_bytes: int, keep: Collection[str] = ()) -> List[Image]:
    """Remove images, the longest unused first, until the rest has no more than `limit_bytes`.

    Those in use and those whose digest is in `keep` stay, so that more may be left.  References
    stay, too: the next job of one pulls it again.  What kills left takes room that no image has:
    it goes first.  Returns what was removed.
    """
    from hpcwrap.image.collect import mend
    from hpcwrap.image.remove import remove_unused

    mend(store)
    images = sorted(store.images()[0], key=last_use)
    total = sum(image.size for image in images)
    removed = []
    for image in images:
        if total <= limit_bytes:
            break
        if image.digest not in keep and remove_unused(store, image.digest):
            total -= image.size
            removed.append(image)
    return removed


def last_use(image: Image) -> float:
    """When an image was last of use, an epoch in s."""
    return max(image.used, image.pulled)


def _is_ours(root: str) -> bool:
    """Whether nobody else can put an image there; what is not there yet will be ours."""
    try:
        link, found = os.lstat(root), os.stat(root)
    except OSError:
        return not os.path.islink(root)
    return link.st_uid == found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _try_to_copy(site: Store, cache: Store, image: Image, limit: int) -> Image:
    from hpcwrap.image.workspace import BusyError, ensure_store, locked

    try:
        ensure_store(cache)
        # One after the other: two at once would each find the room that is there for one.
        name = f"image-{hex_digits(image.digest)}"
        with locked(cache, "copy.lock", WAIT_SECONDS), locked(cache, name, WAIT_SECONDS):
            found = cache.find_digest(image.digest, image.reference)
            if found is None and _make_room(cache, image, limit):
                _copy(site, cache, image)
                found = cache.read_image(image.digest, image.reference)
        return found or image
    except _DamagedCopyError:
        raise
    except BusyError:
        return image
    except (OSError, HpcwrapError) as error:
        log.warn(f"cannot copy {image.reference} into the cache {cache.root}: {error}")
        return image


class _DamagedCopyError(SiteError):
    """The copy is not what was published."""


def _make_room(cache: Store, image: Image, limit: int) -> bool:
    """Evict what has to go for the image; whether it fits then."""
    if image.size > min(limit, _capacity(cache)):
        return False
    keep = (image.digest,)
    evict(cache, limit - image.size, keep)
    missing = image.size - _free(cache)
    if missing > 0:
        evict(cache, _total(cache) - missing, keep)
    return _total(cache) + image.size <= limit and image.size <= _free(cache)


def _copy(site: Store, cache: Store, image: Image) -> None:
    from hpcwrap.image.publish import sync_and_check, write_document
    from hpcwrap.image.store import read_document
    from hpcwrap.image.workspace import new_file

    target = cache.squashfs_path(image.digest)
    # The document first: it says which bytes to expect, and whose they are.
    document = read_document(site.document_path(image.digest))
    mode = 0o400 if document.get("uids") else 0o444
    with open(image.squashfs, "rb") as source, new_file(target) as file:
        copy_bytes(source.fileno(), file.fileno())
        os.fchmod(file.fileno(), mode)
        copied = sync_and_check(file.fileno())
        if document.get("checksum", copied) != copied:
            raise _DamagedCopyError(
                f"the image {image.reference} in the store is damaged: {image.squashfs} is not "
                "what was written there",
                "`hpcwrap image verify --repair` pulls it again",
            )
        os.rename(file.name, target)
    document = {**document, "checksum": copied, "copied": time.time()}
    write_document(cache.document_path(image.digest), document, mode)


def copy_bytes(source: int, target: int) -> None:
    """Copy a file to its end; within one file system, the kernel copies or shares the blocks.

    Raises OSError.
    """
    try:
        while os.copy_file_range(source, target, CHUNK):
            pass
    except OSError:
        # From one kind of file system to another it is EXDEV (copy_file_range(2)).
        while os.sendfile(target, source, None, CHUNK):
            pass


def _total(store: Store) -> int:
    return sum(image.size for image in store.images()[0])


def _free(store: Store) -> int:
    disk = os.statvfs(store.images_directory)
    return disk.f_bavail * disk.f_frsize - int(LEFT_FREE * _capacity(store))


def _capacity(store: Store) -> int:
    disk = os.statvfs(store.images_directory)
    return disk.f_blocks * disk.f_frsize
