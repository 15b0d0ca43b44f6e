"""Put things into the store: finished files appear by rename, documents last."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from contextlib import ExitStack
from typing import IO, Any, Dict, List, Optional

from hpcwrap.errors import SiteError
from hpcwrap.image.checksum import Pieces, checksum
from hpcwrap.image.lease import holders
from hpcwrap.image.store import (
    VERSION,
    Document,
    Link,
    Store,
    parse_key,
    read_document,
)
from hpcwrap.image.workspace import make_directory, new_file

COPY = 8 << 20
MAX_HISTORY = 20
EVERYONES = 0o444
ROOTS = 0o400


def publish_image(
    store: Store, digest: str, made: str, document: Document, known: Optional[Pieces] = None
) -> None:
    """Take the file `made`, which the image user made, as the squashfs of an image.

    known: pieces of its checksum that the image user has made: who lies here damages what is his
    own work.  document["uids"], if there and not empty, makes it these users' alone.  The caller
    holds the image's lock.  Raises SiteError when the file is not what it has to be: a plain file
    with one name.
    """
    target = store.squashfs_path(digest)
    mode = _mode(document)
    if os.geteuid() == 0:
        # What is looked at below and what is renamed at the end must be one file: no process of
        # the image user may change names here any more.
        os.chown(os.path.dirname(made), 0, 0)
    with ExitStack() as stack:
        file = stack.enter_context(_open_made(made))
        if os.geteuid() == 0 and not _nobody_writes(file.fileno()):
            file = _copied(file, stack.enter_context(new_file(target)))
            made = file.name
        os.fchmod(file.fileno(), mode)
        found = sync_and_check(file.fileno(), known)
        set_aside_if_held(store, digest)
        os.rename(made, target)
    own = {"version": VERSION, "digest": digest, "checksum": found}
    write_document(store.document_path(digest), {**document, **own}, mode)


def publish_link(
    store: Store, name: object, digest: str, stamp: str = "", owner: Optional[int] = None
) -> None:
    """Remember what a reference was resolved to just now; the caller holds the reference's lock.

    `name` is a Reference, a Source or the canonical text of one.
    """
    old = store.find_link(name, owner)
    earlier = [one for one in old.history if one != digest] if old else []
    history = (digest, *earlier)[:MAX_HISTORY]
    write_link(store, Link(str(name), digest, time.time(), history, stamp=stamp, owner=owner))


def note_failure(store: Store, text: str, sentence: str, owner: Optional[int] = None) -> None:
    """Remember why a reference could not be refreshed; until the next publish_link.

    The caller holds the reference's lock.
    """
    link = store.find_link(parse_key(text)[0], owner)
    if link is not None:
        write_link(store, link._replace(failed=sentence, failed_at=time.time()))


def write_link(store: Store, link: Link) -> None:
    """Write a file of refs/; that of a private image or of a user is root's alone."""
    image = store.find_digest(link.digest)
    mode = ROOTS if link.owner is not None or (image and image.uids) else EVERYONES
    path = store.ref_path(link.reference, link.owner)
    write_document(path, {"version": VERSION, **link._asdict()}, mode)


def grant(store: Store, digest: str, uid: int) -> None:
    """Let one more user use a private image; everyone's image stays everyone's.

    The caller holds the image's lock.  Raises OSError or DamagedError.
    """
    document = read_document(store.document_path(digest))
    uids: List[int] = document.get("uids", [])
    if uids and uid not in uids:
        change_document(store, digest, {"uids": [*uids, uid]})


def share(store: Store, digest: str) -> None:
    """Let everyone use an image; the caller holds the image's lock.

    Raises OSError or DamagedError.
    """
    change_document(store, digest, {"uids": []})
    # The document goes first: whoever may read it may come to the squashfs a moment later.
    os.chmod(store.squashfs_path(digest), EVERYONES)
    for link in store.links()[0]:
        if link.digest == digest and link.owner is None:
            os.chmod(store.ref_path(link.reference), EVERYONES)


def change_document(store: Store, digest: str, changes: Document) -> None:
    """Change fields of an image's document; its mtime, the last use, stays."""
    path = store.document_path(digest)
    document = {**read_document(path), **changes}
    write_document(path, document, _mode(document), used=os.stat(path).st_mtime)


def write_document(
    path: str, document: Dict[str, Any], mode: int = EVERYONES, used: Optional[float] = None
) -> None:
    """Write a JSON document under another name, then rename it; `used` becomes its mtime."""
    with new_file(path) as file:
        file.write(json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fchmod(file.fileno(), mode)
        if used is not None:
            os.utime(file.fileno(), (used, used))
        os.fsync(file.fileno())
        os.rename(file.name, path)


def set_aside_if_held(store: Store, digest: str) -> None:
    """Keep an old squashfs of this name alive for the jobs that still have it open.

    On NFS a file whose last name goes is gone, also for another node that has it mounted.
    """
    path = store.squashfs_path(digest)
    if os.path.exists(path) and holders(store, digest):
        set_aside(store, path)


def set_aside(store: Store, path: str) -> str:
    """Move a file to where nobody takes it for what it was; its path there (collect.py)."""
    make_directory(store, store.aside_directory, 0o700)
    name = f"{time.time_ns()}.{os.path.basename(path)}"
    target = os.path.join(store.aside_directory, name)
    os.rename(path, target)
    return target


def sync_and_check(descriptor: int, known: Optional[Pieces] = None) -> str:
    """Bring a file to the disk; its checksum, which is made meanwhile, but for known pieces."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as other:
        synced = other.submit(os.fsync, descriptor)
        found = checksum(descriptor, known=known)
        synced.result()
    return found


def _mode(document: Document) -> int:
    return ROOTS if document.get("uids") else EVERYONES


def _open_made(made: str) -> IO[bytes]:
    descriptor = os.open(made, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise SiteError(f"cannot take {made} into the store: it is no plain file")
    if os.geteuid() == 0:
        os.fchown(descriptor, 0, 0)
    return os.fdopen(descriptor, "rb")


def _nobody_writes(descriptor: int) -> bool:
    # The file was another user's: a process of that user might hold it open and change it after
    # root's checks.  A read lease is given only where nobody has (fcntl(2), F_SETLEASE).
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _copied(source: IO[bytes], file: IO[bytes]) -> IO[bytes]:
    while os.sendfile(file.fileno(), source.fileno(), None, COPY):
        pass
    return file
