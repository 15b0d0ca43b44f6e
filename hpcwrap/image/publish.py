"""Put things into the store: finished files appear by rename, documents last."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import time
from typing import IO, Any, Dict

from hpcwrap.errors import SiteError
from hpcwrap.image.reference import Reference
from hpcwrap.image.store import VERSION, Store

COPY = 8 << 20


def publish_image(store: Store, digest: str, made: str, document: Dict[str, Any]) -> None:
    """Take the file `made`, which the image user made, as the squashfs of an image.

    Raises SiteError when it is not what it has to be: a plain file with one name.
    """
    target = store.squashfs_path(digest)
    if os.geteuid() == 0:
        # What is looked at below and what is renamed at the end must be one file: no process of
        # the image user may change names here any more.
        os.chown(os.path.dirname(made), 0, 0)
    descriptor = os.open(made, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise SiteError(f"cannot take {made} into the store: it is no plain file")
        if os.geteuid() == 0:
            os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, 0o444)
        if os.geteuid() == 0 and not _nobody_writes(descriptor):
            _publish_copy(file, target)
        else:
            os.fsync(descriptor)
            os.rename(made, target)
    document = {**document, "version": VERSION, "digest": digest}
    write_document(store.document_path(digest), document)


def publish_link(store: Store, reference: Reference, digest: str) -> None:
    """Remember what a reference was resolved to just now."""
    link = {"version": VERSION, "reference": str(reference), "digest": digest}
    write_document(store.ref_path(reference), {**link, "resolved": time.time()})


def write_document(path: str, document: Dict[str, Any]) -> None:
    """Write a JSON document under another name, then rename it."""
    directory, name = os.path.split(path)
    with _new_file(directory, name) as file:
        file.write(json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")
        _rename(file, path)


def _nobody_writes(descriptor: int) -> bool:
    # The file was another user's: a process of that user might hold it open and change it after
    # root's checks.  A read lease is given only where nobody has (fcntl(2), F_SETLEASE).
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _publish_copy(source: IO[bytes], target: str) -> None:
    directory, name = os.path.split(target)
    with _new_file(directory, name) as file:
        while os.sendfile(file.fileno(), source.fileno(), None, COPY):
            pass
        _rename(file, target)


def _new_file(directory: str, name: str) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir=directory, prefix=f".{name[:100]}.", delete=False)


def _rename(file: IO[bytes], path: str) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())
    os.rename(file.name, path)
