"""Owners: the processes whose life is a job's on this node; a sweep ends what they leave.

/run/hpcwrap/jobs/<id>/owners/PID-START    number and start time name a process for good
/run/hpcwrap/turns                         one byte for each job: who has its turn locks it

docs/decisions/0130-owners-and-sweep.md
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import Iterable, Iterator, List

from hpcwrap.errors import NodeError
from hpcwrap.paths import JobPaths
from hpcwrap.run import start_time

GONE = frozenset("ZX")
"""States of proc(5) in which a process does nothing any more."""


@contextmanager
def turn(place: JobPaths, *, wait: bool = True) -> Iterator[bool]:
    """Have a job's directory to oneself: prolog, epilog and sweep of one job take turns.

    Gives False when another has it and `wait` is false.  Not to be nested in one process.  A lock
    of fcntl(2), for one of flock(2) would stay with the copies that the builder and the holder have
    of the descriptor; in a file that is never removed, one byte of it for each job.

    Raises NodeError.
    """
    with alone(place.turns, os.path.basename(place.directory), wait=wait) as ours:
        yield ours


@contextmanager
def alone(path: str, job_id: str, *, wait: bool = True) -> Iterator[bool]:
    """Have a job to oneself among all who say so by the same file.  Raises NodeError."""
    fd = _open_turns(path)
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        yield _lock(fd, how, byte_of(job_id))
    finally:
        os.close(fd)


def begin(place: JobPaths, processes: Iterable[int]) -> None:
    """Note a job's owners before anything else of it is there; none: no sweep ends this job.

    To be called in the job's turn.  Raises NodeError.
    """
    numbers = list(processes)
    if not numbers:
        return
    try:
        os.makedirs(place.owners, mode=0o700, exist_ok=True)
        for process in numbers:
            _note(place, process)
    except OSError as error:
        raise NodeError(f"cannot write {place.owners}: {error.strerror}") from error


def add(place: JobPaths, process: int) -> bool:
    """Note one more owner; False when the job's directory is gone, or the process.

    Raises NodeError.
    """
    with turn(place):
        try:
            return os.path.isdir(place.owners) and _note(place, process)
        except OSError as error:
            raise NodeError(f"cannot write {place.owners}: {error.strerror}") from error


def drop(place: JobPaths, process: int) -> None:
    """Forget an owner; what is not there is fine."""
    for name in _names(place):
        if name.partition("-")[0] == str(process):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(place.owners, name))


def alive(place: JobPaths) -> bool:
    """Whether an owner of the job runs still; true, too, for a job that is to have none."""
    return not os.path.isdir(place.owners) or any(map(_runs, _names(place)))


def running(place: JobPaths) -> List[int]:
    """Numbers of the owners that run still."""
    return [int(name.partition("-")[0]) for name in _names(place) if _runs(name)]


def _names(place: JobPaths) -> List[str]:
    try:
        return os.listdir(place.owners)
    except FileNotFoundError:
        return []


def _note(place: JobPaths, process: int) -> bool:
    started = start_time(process)
    if started:
        path = os.path.join(place.owners, f"{process}-{started}")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return bool(started)


def _runs(name: str) -> bool:
    """Whether PID-START is a process that has not ended; its parent may not have looked yet."""
    process, _, started = name.partition("-")
    if not process.isdigit() or start_time(int(process)) != started:
        return False
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in GONE
    except OSError:
        return False


def _open_turns(path: str) -> int:
    """Open the file of turns; root's alone: whoever can lock it, can stop every prolog."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NodeError(f"cannot open {path}: {error.strerror}") from error


def _lock(fd: int, how: int, byte: int) -> bool:
    try:
        fcntl.lockf(fd, how, 1, byte)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
        return False
    return True


def byte_of(job_id: str) -> int:
    """A job's byte; two jobs that share one wait for each other, and that is all.

    Whoever calls the helper chooses words of the id, and could choose some with the checksum of
    another's job: what ends with a user's number shares bytes with that user's jobs only.
    """
    import binascii

    stem, _, user = job_id.rpartition("-u")
    high = int(user) & 0x7FFFFFFF if stem and user.isdecimal() else 0
    return high << 32 | binascii.crc32(job_id.encode("utf-8", "surrogateescape"))
