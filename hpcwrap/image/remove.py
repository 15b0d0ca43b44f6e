"""Take images out of the store."""

from __future__ import annotations

import glob
import os
import re
from typing import List, NamedTuple, Optional

from hpcwrap.errors import UserError
from hpcwrap.image.digest import ALGORITHM, hex_digits, is_digest
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.store import Link, Store
from hpcwrap.image.workspace import locked

LOCK_SECONDS = 2.0
LOOP_FILES = "/sys/block/loop*/loop/backing_file"

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})\Z")


class Removed(NamedTuple):
    """What left the store; `kept_for` are the references for which the image stays."""

    digest: str
    references: List[str]
    kept_for: List[str]


def remove(store: Store, text: str) -> Removed:
    """Remove a reference, and its image if no other reference names it; or an image by digest.

    `text` is a reference, a digest or at least 6 of its hex digits.  Raises UserError when there
    is no such image, or when it is in use on this node.
    """
    links, _ = store.links()
    link = _find_link(store, text)
    if link is not None:
        others = [x for x in links if x.digest == link.digest and x.reference != link.reference]
        if others:
            _unlink(store.ref_path(parse_reference(link.reference)))
            return Removed(link.digest, [link.reference], [x.reference for x in others])
        return _remove_image(store, link.digest, [link])
    digest = find_by_digits(store, text)
    if digest is None:
        raise UserError(f"cannot find the image {text} in the store", "hpcwrap images lists them")
    return _remove_image(store, digest, [x for x in links if x.digest == digest])


def find_by_digits(store: Store, text: str) -> Optional[str]:
    """The digest in the store that begins with these hex digits, or None.

    Raises UserError when there are several.
    """
    prefix = _PREFIX.match(text)
    if prefix is None:
        return None
    found = {
        name.partition(".")[0]
        for name in os.listdir(store.images_directory)
        if name.startswith(prefix[1])
    }
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


def _find_link(store: Store, text: str) -> Optional[Link]:
    try:
        return store.find_link(parse_reference(text))
    except UserError:
        return None


def _remove_image(store: Store, digest: str, links: List[Link]) -> Removed:
    squashfs = store.squashfs_path(digest)
    with locked(store, f"image-{hex_digits(digest)}", LOCK_SECONDS):
        device = loop_device_of(squashfs)
        if device is not None:
            raise UserError(
                f"cannot remove the image {digest}: {device} on this node uses it",
                "a container of it runs; try again when the job has ended",
            )
        # References first, the squashfs last: what is left after a kill is found again by rm.
        for link in links:
            _unlink(store.ref_path(parse_reference(link.reference)))
        _unlink(store.document_path(digest))
        _unlink(squashfs)
    return Removed(digest, [link.reference for link in links], [])


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # another rm was faster
    except PermissionError as error:
        raise UserError(f"cannot remove {path}: {error.strerror}", "is this store yours?") from None
