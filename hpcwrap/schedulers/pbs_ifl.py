"""PBS's own library, libpbs, by ctypes: pbs_connect(3B), pbs_statjob(3B) and their like.

Structures are those of pbs_ifl.h; tests/pbs compares them with the header by the
compiler.  Strings that the library gives are read as UTF-8 with surrogates.
"""

from __future__ import annotations

import ctypes
import os
from typing import Dict, Iterator, List, Mapping, NamedTuple, NoReturn, Optional

from hpcwrap.errors import SiteError, UserError
from hpcwrap.schedulers.pbs import read_installation

LIBRARIES = ("lib/libpbs.so.0", "lib/libpbs.so", "lib64/libpbs.so.0", "lib64/libpbs.so")
"""Below PBS_EXEC."""

HISTORY = b"x"
"""pbs_statjob's extend: jobs that have ended, too."""

ELEMENTS = b"t"
"""And of this the elements of arrays."""

GONE = (0, 15001, 15139)
"""Nothing wrong; PBSE_UNKJOBID, PBSE_HISTJOBID of pbs_error.h: no such job, or not any more."""

ERRNO = "__pbs_errno_location"
"""pbs_errno is a macro of it."""


class Attribute(ctypes.Structure):
    """struct attrl, and attropl, which is laid out the same: a list of NAME.RESOURCE = VALUE."""


Attribute._fields_ = [
    ("next", ctypes.POINTER(Attribute)),
    ("name", ctypes.c_char_p),
    ("resource", ctypes.c_char_p),
    ("value", ctypes.c_void_p),
    ("op", ctypes.c_int),
]


class BatchStatus(ctypes.Structure):
    """struct batch_status: a list of jobs or nodes with their attributes."""


BatchStatus._fields_ = [
    ("next", ctypes.POINTER(BatchStatus)),
    ("name", ctypes.c_char_p),
    ("attribs", ctypes.POINTER(Attribute)),
    ("text", ctypes.c_char_p),
]


class Status(NamedTuple):
    """A job or a node; a resource's key is ``Resource_List.mem``, other keys are plain names."""

    name: str
    attributes: Dict[str, str]


class Server:
    """A connection to pbs_server; a context manager.

    Every method raises UserError with the server's own words where it refuses.
    """

    def __init__(self, name: str = "") -> None:
        """Connect, to pbs.conf's server by default.  Raises SiteError."""
        self._library = load()
        self._connection: int = self._library.pbs_connect(name.encode() or None)
        if self._connection < 0:
            told = f"error {self._error()}"
            raise SiteError(f"cannot reach pbs_server {name}: {told}", "is it up?")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.pbs_disconnect(self._connection)

    def jobs(self, job: str = "", *, history: bool = False, elements: bool = False) -> List[Status]:
        """All jobs, or one if it is there; with `history` those that have ended, too.

        With `elements` the elements of arrays, too.
        """
        extend = (HISTORY if history else b"") + (ELEMENTS if elements else b"")
        found = self._library.pbs_statjob(
            self._connection, job.encode() or None, None, extend or None
        )
        return self._take(found)

    def nodes(self, node: str = "") -> List[Status]:
        """All nodes, or one."""
        found = self._library.pbs_statnode(self._connection, node.encode() or None, None, None)
        return self._take(found)

    def submit(self, script: str, attributes: Mapping[str, str], destination: str = "") -> str:
        """Submit a script, given by its path; the job's id.

        pbs_submit(3B) adds nothing by itself, as qsub(1B) does: Variable_List is the caller's.
        """
        given = hand_over(self._library, attributes)
        made = self._library.pbs_submit(
            self._connection, given, os.fsencode(script), destination.encode() or None, None
        )
        if not made:
            self._fail("submit a job")
        job = ctypes.string_at(made).decode()
        self._library.free(made)
        return job

    def alter(self, job: str, attributes: Mapping[str, str]) -> None:
        """Change a job."""
        given = hand_over(self._library, attributes)
        if self._library.pbs_alterjob(self._connection, job.encode(), given, None):
            self._fail(f"change job {job}")

    def delete(self, job: str) -> None:
        """Delete a job, or end it."""
        if self._library.pbs_deljob(self._connection, job.encode(), None):
            # It leaves the text of an earlier error in place, unlike the others.
            reason = self._library.pbse_to_txt(self._error()) or b"pbs_server refuses"
            raise UserError(f"cannot delete job {job}: {text(reason).strip()}")

    def _take(self, found: ctypes._Pointer[BatchStatus]) -> List[Status]:
        """Read and free a list; no list is an error, or nothing to tell."""
        if not found:
            if self._error() not in GONE:
                self._fail("ask pbs_server")
            return []
        try:
            return [Status(text(each.name), dict(read_attributes(each))) for each in walk(found)]
        finally:
            self._library.pbs_statfree(found)

    def _error(self) -> int:
        # By its name as text: in a class, a name with two underscores would be another.
        return int(getattr(self._library, ERRNO)()[0])

    def _fail(self, what: str) -> NoReturn:
        said = self._library.pbs_geterrmsg(self._connection)
        reason = text(said).strip() if said else f"error {self._error()}"
        raise UserError(f"cannot {what}: {reason}")


def load() -> ctypes.CDLL:
    """Load the library that pbs.conf leads to.  Raises SiteError."""
    programs = read_installation(os.environ).programs
    paths = [os.path.join(programs, name) for name in LIBRARIES]
    there = [path for path in paths if os.path.exists(path)]
    if not there:
        raise SiteError(f"cannot find libpbs below {programs}", "is PBS_EXEC of pbs.conf right?")
    try:
        return declare(ctypes.CDLL(there[0]))
    except OSError as error:
        raise SiteError(f"cannot load {there[0]}: {error}") from error


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the functions take and give: pbs_ifl.h."""
    number, string = ctypes.c_int, ctypes.c_char_p
    attributes, statuses = ctypes.POINTER(Attribute), ctypes.POINTER(BatchStatus)
    for name, result, arguments in (
        ("pbs_connect", number, (string,)),
        ("pbs_disconnect", number, (number,)),
        ("pbs_geterrmsg", string, (number,)),
        ("pbse_to_txt", string, (number,)),
        (ERRNO, ctypes.POINTER(number), ()),
        ("pbs_statjob", statuses, (number, string, attributes, string)),
        ("pbs_statnode", statuses, (number, string, attributes, string)),
        ("pbs_statfree", None, (statuses,)),
        ("pbs_submit", ctypes.c_void_p, (number, attributes, string, string, string)),
        ("pbs_alterjob", number, (number, string, attributes, string)),
        ("pbs_deljob", number, (number, string, string)),
        ("strdup", ctypes.c_void_p, (string,)),
        ("free", None, (ctypes.c_void_p,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def hand_over(
    library: ctypes.CDLL, attributes: Mapping[str, str]
) -> Optional[ctypes._Pointer[Attribute]]:
    """A linked list of attributes as the library takes it.

    It frees some values, paths and dependencies, and after pbs_alterjob(3B) nobody can tell which:
    so they are malloc's, and those that are left are left for good, a hundred bytes a call.
    """
    first = None
    for key, value in reversed(tuple(attributes.items())):
        name, _, resource = key.partition(".")
        copy = library.strdup(os.fsencode(value))
        made = Attribute(first, name.encode(), resource.encode() or None, copy)
        first = ctypes.pointer(made)
    return first


def walk(found: ctypes._Pointer[BatchStatus]) -> Iterator[BatchStatus]:
    """Every member of a linked list."""
    while found:
        yield found.contents
        found = found.contents.next


def read_attributes(status: BatchStatus) -> Iterator[tuple[str, str]]:
    """The attributes of a job or a node, as pairs."""
    each = status.attribs
    while each:
        name, resource = text(each.contents.name), text(each.contents.resource or b"")
        value = each.contents.value
        yield f"{name}.{resource}" if resource else name, text(ctypes.string_at(value or b""))
        each = each.contents.next


def text(raw: bytes) -> str:
    """A string of the library's."""
    return raw.decode("utf-8", "surrogateescape")
