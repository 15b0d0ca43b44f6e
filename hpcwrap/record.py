"""The record: what the prolog leaves in a job's directory for enter and epilog.

/run/hpcwrap/jobs/<id>/
    ns/mnt ns/user   pins of the namespaces
    record.json      who, what, which image, how long it took
    timing           lines that joining ranks append
    entry            what native/enter.c reads; written last: it is there when all is there
    error            instead: one sentence that ends the job
    owners/          processes whose life is the job's, for schedulers whose epilog may not come
    leases           one line for each lease of an image, written before it is taken
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from hpcwrap.errors import NodeError, SiteError
from hpcwrap.paths import JobPaths

VERSION = 1
LISTS = ("stores", "rlimits", "plan", "variables")

# linux/posix_acl_xattr.h: a version, then an entry each of tag, permissions and number.
ACL, ACL_VERSION, ACL_ENTRY = "system.posix_acl_access", struct.pack("<I", 2), struct.Struct("<HHI")
OWNER, USER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
NOBODY = 0xFFFFFFFF


class Record(NamedTuple):
    """A job's container on this node; times in ms, `started` in seconds since the epoch.

    `environment` is its name, or the image that the user named.  `stores` are those in which the
    job holds a lease of the image.  `warning` says what was not as it should be, though the job
    runs.  `rlimits` are those that root sets before a command starts, NAME=SOFT:HARD.  `uid` is the
    user's number, -1 where it is not known.  `pin` is the digest that was asked for, if one was.
    `plan` has a line for each operation, `variables` one for each change to the job's variables.
    """

    job: str
    scheduler: str
    node: str
    user: str
    environment: str
    origin: str
    reference: str
    digest: str
    started: float
    milliseconds: Dict[str, float]
    stores: Sequence[str] = ()
    warning: str = ""
    rlimits: Sequence[str] = ()
    uid: int = -1
    pin: str = ""
    plan: Sequence[str] = ()
    variables: Sequence[str] = ()

    @property
    def label(self) -> str:
        """NAME@DIGEST, as accounting shows it."""
        return f"{self.environment}@{self.digest}"


def write_record(place: JobPaths, record: Record) -> None:
    """Write the record, for root and for the job's user to read."""
    document = {"version": VERSION, **record._asdict()}
    publish(place.record, json.dumps(document).encode() + b"\n", 0o600, reader=record.uid)


def read_record(place: JobPaths) -> Optional[Record]:
    """Read a job's record; None when there is none.  Raises SiteError when it is broken."""
    try:
        with open(place.record, encoding="utf-8") as file:
            document = json.load(file)
        if document.pop("version") != VERSION:
            raise ValueError("written by another version of hpcwrap")
        document.update((name, tuple(document.get(name, ()))) for name in LISTS)
        return Record(**document)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SiteError(f"cannot read the record {place.record}: {error}") from error


class Held(NamedTuple):
    """A lease as the job's directory names it: the store's root, the image's digest, the node."""

    store: str
    digest: str
    node: str


def begin_leases(place: JobPaths) -> None:
    """Leave the file that says: a prolog is at it.  An empty directory would be nobody's."""
    os.close(os.open(place.leases, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def note_lease(place: JobPaths, held: Held) -> None:
    """Note a lease that is about to be taken: a prolog that is killed then leaves no record."""
    with suppress(FileNotFoundError):  # nobody's job: what is supplied beside the stages
        fd = os.open(place.leases, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(fd, json.dumps(held).encode() + b"\n")
        os.close(fd)


def read_leases(place: JobPaths) -> List[Held]:
    """The leases that a job has, or was about to take; a line that was cut off was none yet."""
    held = []
    with suppress(FileNotFoundError), open(place.leases, encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError, TypeError):
                held.append(Held(*json.loads(line)))
    return held


def write_error(place: JobPaths, sentence: str) -> None:
    """Leave the sentence that ends the job.  Raises NodeError when even that fails."""
    try:
        os.makedirs(place.directory, mode=0o711, exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(place.entry)
        publish(place.error, sentence.encode("utf-8", "backslashreplace") + b"\n", 0o644)
    except OSError as error:
        raise NodeError(f"cannot write {place.error}: {error.strerror}") from error


def read_timing(place: JobPaths) -> List[Dict[str, Any]]:
    """The joins of ranks so far: [{"rank": 0, "us": 95}, ...]; odd lines are left out."""
    joins = []
    with suppress(OSError), open(place.timing, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) == 3 and words[0] == "join" and words[2].isdigit():
                joins.append({"rank": words[1], "us": int(words[2])})
    return joins


def publish(path: str, content: bytes, mode: int, group: int = -1, reader: int = -1) -> None:
    """Write a file so that it is there whole or not at all (temporary file, rename).

    `group` is the file's; `reader` is the number of a user who may read it, besides.
    """
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        if group >= 0:
            os.fchown(fd, -1, group)
        if reader >= 0:
            let_read(fd, reader)
        file.write(content)
    os.rename(temporary, path)


def let_read(fd: int, uid: int) -> None:
    """Let one user read a file that is root's alone (acl(5)); a group of the user's has others.

    To give the user the file would be to let the user change it.  Where the file system has no
    access control lists, root alone reads on.
    """
    entries = ((OWNER, 6, NOBODY), (USER, 4, uid), (GROUP, 0, NOBODY), (MASK, 4, NOBODY))
    packed = [ACL_ENTRY.pack(*entry) for entry in (*entries, (OTHER, 0, NOBODY))]
    with suppress(OSError):
        os.setxattr(fd, ACL, ACL_VERSION + b"".join(packed))


def remove(place: JobPaths) -> None:
    """Remove a job's directory and the files in it; what is not there is fine."""
    for directory in (place.namespaces, place.owners, place.directory):
        with suppress(FileNotFoundError):
            for entry in os.scandir(directory):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
            os.rmdir(directory)
