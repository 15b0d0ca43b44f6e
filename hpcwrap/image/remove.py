"""Take images out of the store, but none that a job uses.

Who removes an image hides its document first and looks then for leases; a prolog takes its lease
first and looks then for the document.  Whatever the order, one of the two sees the other: either
the image comes back, or the prolog knows that it is gone (docs/decisions/0016).
"""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from typing import List, NamedTuple, Optional

from hpcwrap.errors import UserError
from hpcwrap.image import lease
from hpcwrap.image.digest import ALGORITHM, hex_digits, is_digest
from hpcwrap.image.store import Link, Store, parse_key
from hpcwrap.image.workspace import HIDDEN, BusyError, locked

LOCK_SECONDS = 2.0
LOOP_FILES = "/sys/block/loop*/loop/backing_file"
SHOWN = 3

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})\Z")


class Removed(NamedTuple):
    """What left the store; `kept_for` are the references for which the image stays."""

    digest: str
    references: List[str]
    kept_for: List[str]


def remove(store: Store, text: str) -> Removed:
    """Remove a reference, and its image if no other reference names it; or an image by digest.

    `text` is a reference, a digest or at least 6 of its hex digits.  Raises UserError when there
    is no such image, or when it is in use.
    """
    links, _ = store.links()
    link = _find_link(links, text)
    if link is not None:
        same = [x for x in links if x.digest == link.digest]
        own = [x for x in same if x.reference == link.reference]
        others = sorted({x.reference for x in same if x not in own})
        if others:
            _forget(store, own)
            return Removed(link.digest, [link.reference], others)
        return _remove_image(store, link.digest, own)
    digest = find_by_digits(store, text)
    if digest is None:
        raise UserError(f"cannot find the image {text} in the store", "hpcwrap images lists them")
    return _remove_image(store, digest, [x for x in links if x.digest == digest])


def remove_unused(store: Store, digest: str) -> bool:
    """Remove an image unless somebody uses it or works on it; its references stay."""
    try:
        with locked(store, f"image-{hex_digits(digest)}", 0.0):
            return take_out(store, digest)
    except BusyError:
        return False


def take_out(store: Store, digest: str) -> bool:
    """Remove an image's files unless a job uses them; the caller holds the image's lock.

    A kill on the way leaves a hidden document: collect.py goes on from there.
    """
    squashfs, hidden = store.squashfs_path(digest), hidden_path(store, digest)
    with suppress(FileNotFoundError):
        os.rename(store.document_path(digest), hidden)
    store.look_anew()
    if loop_device_of(squashfs) or not lease.release_unheld(store, digest):
        put_back(store, digest)
        return False
    _unlink(squashfs)
    _unlink(hidden)
    return True


def put_back(store: Store, digest: str) -> None:
    """Show an image again whose removal was begun; the caller holds the image's lock."""
    document, hidden = store.document_path(digest), hidden_path(store, digest)
    if os.path.exists(document) or not os.path.exists(store.squashfs_path(digest)):
        _unlink(hidden)  # pulled again meanwhile, or removed but for this
        return
    with suppress(FileNotFoundError):
        os.rename(hidden, document)


def hidden_path(store: Store, digest: str) -> str:
    """Where the document of an image is while it is removed."""
    return os.path.join(store.images_directory, f".{hex_digits(digest)}.json{HIDDEN}")


def users_of(store: Store, digest: str) -> List[str]:
    """Who uses an image, each in a few words: ``job 7 on n1``, ``/dev/loop3 on this node``."""
    jobs = [f"job {one.job} on {one.node}" for one in lease.holders(store, digest)]
    device = loop_device_of(store.squashfs_path(digest))
    return jobs + ([f"{device} on this node"] if device else [])


def find_by_digits(store: Store, text: str) -> Optional[str]:
    """The digest in the store that begins with these hex digits, or None.

    Raises UserError when there are several.
    """
    prefix = _PREFIX.match(text)
    if prefix is None:
        return None
    try:
        names = os.listdir(store.images_directory)
    except FileNotFoundError:
        return None
    found = {name.partition(".")[0] for name in names if name.startswith(prefix[1])}
    if len(found) > 1:
        raise UserError(f"cannot tell which image {text} is: {', '.join(sorted(found))}")
    digest = f"{ALGORITHM}:{''.join(found)}"
    return digest if is_digest(digest) else None


def loop_device_of(squashfs: str) -> Optional[str]:
    """The loop device on this node that uses a file, or None."""
    path = os.path.realpath(squashfs)
    for name in glob.glob(LOOP_FILES):
        try:
            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                backing = file.read().rstrip("\n")
        except OSError:
            continue  # the device was released since the listing
        if backing == path:
            return "/dev/" + name.split("/")[3]
    return None


def _find_link(links: List[Link], text: str) -> Optional[Link]:
    """The site's link of a reference, or else a user's own.

    Raises UserError where several users have different images of that name.
    """
    try:
        key = parse_key(text)[0]
    except UserError:
        return None
    found = [link for link in links if link.reference == key]
    site = next((link for link in found if link.owner is None), None)
    if site is None and len({link.digest for link in found}) > 1:
        shown = ", ".join(sorted(link.digest[: len(ALGORITHM) + 13] for link in found))
        raise UserError(
            f"cannot tell which image {text} is: users have different ones of that name",
            f"name it by its digest: {shown}",
        )
    return site or (found[0] if found else None)


def _remove_image(store: Store, digest: str, links: List[Link]) -> Removed:
    try:
        with locked(store, f"image-{hex_digits(digest)}", LOCK_SECONDS):
            if not take_out(store, digest):
                raise _in_use(store, digest)
            # References last: one that names nothing any more costs a pull, and rm finds it again.
            _forget(store, links)
    except BusyError:
        raise UserError(
            f"cannot remove the image {digest}: somebody pulls or removes it just now",
            "try again in a minute",
        ) from None
    return Removed(digest, sorted({link.reference for link in links}), [])


def _forget(store: Store, links: List[Link]) -> None:
    for link in links:
        _unlink(store.ref_path(link.reference, link.owner))


def _in_use(store: Store, digest: str) -> UserError:
    users = users_of(store, digest)
    more = f" and {len(users) - SHOWN} more" if len(users) > SHOWN else ""
    verb = "uses" if len(users) == 1 else "use"
    return UserError(
        f"cannot remove the image {digest}: {', '.join(users[:SHOWN])}{more} {verb} it",
        "try again when the jobs have ended; `hpcwrap image gc` drops leases of lost jobs",
    )


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # another rm was faster
    except PermissionError as error:
        raise UserError(f"cannot remove {path}: {error.strerror}", "is this store yours?") from None
