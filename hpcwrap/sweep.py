"""Sweep: the epilog of every job of this node whose owners are all gone.

For what no epilog came for: the scheduler's daemon was killed, or a node's job was taken away
behind its back.  Cheap where nothing is left over: one look at each job's directory.
"""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from typing import Dict, List, NamedTuple

from hpcwrap import epilog, log, owners, paths, run
from hpcwrap.errors import HpcwrapError


class Swept(NamedTuple):
    """What a sweep did: ids of the jobs that it ended, and of those that it could not end, why."""

    ended: List[str]
    failed: Dict[str, HpcwrapError]


def sweep(jobs: str = paths.JOBS) -> Swept:
    """End every job whose owners are all gone; leave those that are just being made or ended."""
    swept = Swept([], {})
    for job_id in left_over(jobs):
        try:
            if end(paths.JobPaths(job_id, jobs)):
                swept.ended.append(job_id)
        except HpcwrapError as error:
            swept.failed[job_id] = error
    return swept


def start_after_boot() -> None:
    """Start `hpcwrap sweep` in the background, unless there has been one since the boot.

    A boot ends jobs without their epilogs: what they left is leases in the store, where their
    directories were.  The lock goes to the new process, so that prologs start one at a time.
    """
    with suppress(OSError):
        lock = os.open(f"{paths.SWEPT}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run.detach([sys.executable, "-I", "-m", "hpcwrap", "sweep"], keep=lock)
        finally:
            os.close(lock)


def sweep_quietly() -> None:
    """Sweep before other work, which goes on whatever comes of it."""
    for job_id, error in sweep().failed.items():
        log.stage_line("sweep", job=job_id, error=error.sentence())


def left_over(jobs: str = paths.JOBS) -> List[str]:
    """Ids of the jobs of this node that nobody owns any more."""
    with suppress(FileNotFoundError):
        names = sorted(entry.name for entry in os.scandir(jobs) if entry.is_dir())
        return [name for name in names if is_left_over(paths.JobPaths(name, jobs))]
    return []


def is_left_over(place: paths.JobPaths) -> bool:
    """Whether a directory is nobody's: its owners are gone, or it was never filled."""
    with suppress(OSError):
        return not owners.alive(place) or not os.listdir(place.directory)
    return False


def end(place: paths.JobPaths) -> bool:
    """End one job, if it is nobody's still and nobody else is at it.  Raises HpcwrapError."""
    with owners.turn(place, wait=False) as ours:
        if not ours or not is_left_over(place):
            return False
        job_id = os.path.basename(place.directory)
        summary = epilog.finish(place)
        log.stage_line("sweep", job=job_id)
    if summary is not None:
        epilog.keep(summary)
    return True
