"""Verify a store: is everything in it what was put there?

Damage is set aside, never deleted: STORE/aside keeps it for a look and for jobs that have it open.
With `pull_again` what a registry still has comes back; what belongs to one user does not, because
root may not pull with that user's password.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from functools import partial
from typing import Callable, Iterator, List, NamedTuple, Optional

from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.image.checksum import checksum
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.publish import change_document, set_aside
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import DamagedError, Image, Store, file_name, read_document, read_link
from hpcwrap.image.workspace import BusyError, locked

MAGIC = b"hsqs"
SUPERBLOCK = 96
LOCK_SECONDS = 2.0

PullAgain = Callable[[str], object]
"""Pulls a source, with a digest in it, into the store; raises HpcwrapError."""

OnBytes = Callable[[str, int, int], None]
"""Is told which image is read, how many bytes of it are done, and of how many."""


class Finding(NamedTuple):
    """What was found of one thing: `problem` is empty where it is well, `repair` what was done."""

    kind: str
    name: str
    problem: str
    repair: str = ""


def verify(
    store: Store,
    digests: List[str],
    pull_again: Optional[PullAgain] = None,
    on_bytes: Optional[OnBytes] = None,
) -> Iterator[Finding]:
    """Check images, one after the other; repair if there is a `pull_again`."""
    for digest in filter(partial(_may_read, store), digests):
        problem = check_image(store, digest, on_bytes)
        done = repair_image(store, digest, pull_again) if problem and pull_again else ""
        yield Finding("image", _name_of(store, digest), problem, done)


def verify_links(store: Store, *, repair: bool = False) -> Iterator[Finding]:
    """Check that the references can be read; repair sets aside those that cannot.

    One without its image is well: the image was evicted, and the next job pulls it.
    """
    for name in sorted(os.listdir(store.refs_directory)):
        path = os.path.join(store.refs_directory, name)
        if name.startswith("."):
            continue  # not there yet
        try:
            link = read_link(path)
            known = file_name(link.reference, link.owner) == name
            problem = "" if known else f"it is the reference {link.reference}"
        except (FileNotFoundError, PermissionError):
            continue  # removed since the listing, or a private image's, and we are not root
        except (OSError, DamagedError) as error:
            problem = str(error)
        done = ""
        if problem and repair:
            done = f"set aside as {set_aside(store, path)}; the next job pulls it again"
        yield Finding("reference", name, problem, done)


def _may_read(store: Store, digest: str) -> bool:
    """Whether an image is ours to look at: private ones are root's alone."""
    path = store.document_path(digest)
    return not os.path.exists(path) or os.access(path, os.R_OK)


def check_image(store: Store, digest: str, on_bytes: Optional[OnBytes]) -> str:
    """What is wrong with an image, as a sentence; empty for nothing.

    An image without a checksum, of an older hpcwrap, gets the one that it has now.
    """
    try:
        image = store.read_image(digest)
        if read_document(store.document_path(digest)).get("digest", digest) != digest:
            return "its document is that of another image"
        with open(image.squashfs, "rb") as file:
            problem = _check_superblock(os.pread(file.fileno(), SUPERBLOCK, 0), image.size)
            if problem:
                return problem
            found = checksum(file.fileno(), on_bytes and partial(_report, on_bytes, image))
    except FileNotFoundError as error:
        return f"{error.filename} is not there"
    except (OSError, DamagedError) as error:
        return f"it cannot be read: {error}"
    if image.checksum and image.checksum != found:
        return f"{image.squashfs} is not what was written there"
    if not image.checksum:
        _keep_checksum(store, digest, found)
    return ""


def repair_image(store: Store, digest: str, pull_again: PullAgain) -> str:
    """Set a damaged image aside, and pull it again if that can be done; what came of it.

    Who has it open goes on with it: a mounted squashfs is the file, not its name.
    """
    sources = sources_of(store, digest)
    private = _is_private(store, digest)
    try:
        with locked(store, f"image-{hex_digits(digest)}", LOCK_SECONDS):
            for path in (store.document_path(digest), store.squashfs_path(digest)):
                with suppress(FileNotFoundError):
                    set_aside(store, path)
    except BusyError:
        return "left as it is: somebody pulls or removes it just now"
    except OSError as error:
        return f"left as it is: {error}"
    if private:
        return "set aside; it is a user's, whose next job pulls it again"
    return _pull_one(store, sources, pull_again)


def sources_of(store: Store, digest: str) -> List[str]:
    """Where an image may be pulled from again: references that have or had it, with its digest."""
    links = [link for link in store.links()[0] if digest in link.history]
    texts = [link.reference for link in sorted(links, key=lambda link: -link.resolved)]
    with suppress(OSError, DamagedError):
        texts.append(str(read_document(store.document_path(digest)).get("reference", "")))
    found = []
    for text in texts:
        with suppress(HpcwrapError):
            source = parse_source(text)
            if source.reference is not None and not source.local:
                found.append(str(source.reference._replace(tag=None, digest=digest)))
    return list(dict.fromkeys(found))


def _pull_one(store: Store, sources: List[str], pull_again: PullAgain) -> str:
    failure = "it came from no registry"
    for text in sources:
        known = store.find_link(text)
        try:
            pull_again(text)
        except HpcwrapError as error:
            failure = error.sentence()
            continue
        if known is None:
            # The references that led here still do; this one was for the pull alone.
            os.unlink(store.ref_path(text))
        return f"pulled again from {text.partition('@')[0]}"
    return f"set aside, but not pulled again: {failure}"


def _report(on_bytes: OnBytes, image: Image, done: int) -> None:
    on_bytes(image.reference, done, image.size)


def _check_superblock(start: bytes, size: int) -> str:
    # squashfs's superblock, little-endian: magic at 0, bytes_used at 40.
    if len(start) < SUPERBLOCK or not start.startswith(MAGIC):
        return "its squashfs is none"
    (used,) = struct.unpack_from("<Q", start, 40)
    return f"its squashfs was cut off after {size} of {used} bytes" if used > size else ""


def _keep_checksum(store: Store, digest: str, found: str) -> None:
    try:
        with locked(store, f"image-{hex_digits(digest)}", LOCK_SECONDS):
            change_document(store, digest, {"checksum": found})
    except (OSError, DamagedError, SiteError):
        return  # the next verify does it


def _is_private(store: Store, digest: str) -> bool:
    image: Optional[Image] = store.find_digest(digest)
    if image is not None:
        return bool(image.uids)
    # The document is damaged, but its mode says the same (publish.py).
    with suppress(OSError):
        return os.stat(store.squashfs_path(digest)).st_mode & 0o044 == 0
    return False


def _name_of(store: Store, digest: str) -> str:
    names = [link.reference for link in store.links()[0] if link.digest == digest]
    return f"{', '.join(sorted(names)) or '-'} ({hex_digits(digest)[:12]})"
