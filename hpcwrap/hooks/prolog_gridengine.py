"""Shepherd: Grid Engine's prolog, for every job, array task and task of a parallel job on a node.

The first shepherd of a job on a node makes the container; those that follow are owners of it, too.
Whoever starts there is in the job's cgroup, because its shepherd is.
docs/decisions/0090-grid-engine-by-the-shepherd.md
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import Iterator

from hpcwrap import log, owners, paths, prolog
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.hooks import epilog_gridengine as epilog
from hpcwrap.job import NO_LIMITS
from hpcwrap.schedulers import gridengine
from hpcwrap.schedulers.gridengine import Spool


def main(_scheduler: str) -> int:
    """Run in a shepherd's spool directory, before it; the exit code, 0 where it is to start."""
    try:
        prepare(gridengine.read_spool(os.getcwd()), int(os.environ["HPCWRAP_SHEPHERD"]))
    except HpcwrapError as error:
        log.say(error.sentence())
        return error.exit_code
    except OSError as error:
        log.say(f"cannot prepare the job: {error}")
        return SiteError.exit_code
    return 0


def prepare(spool: Spool, process: int) -> None:
    """Make a job's container, or join it; `process` becomes the shepherd.  Raises HpcwrapError.

    An error of the prolog's is in the job's record, and the starter ends the job with it.
    """
    place = paths.JobPaths(spool.job_id)
    with turn(spool):
        if not is_shared(place, process):
            prolog.run(gridengine)
            if os.path.isdir(place.directory):
                make_cgroup(place)
                epilog.start(place, process, listener(spool))
    if not os.path.isdir(place.directory):
        return
    if spool.is_outside:
        raise gridengine.refuse_login()
    if os.path.exists(place.cgroups):
        from hpcwrap.container import limits

        limits.join(place, process)
    gridengine.set_starter(spool, paths.starter_program())


@contextmanager
def turn(spool: Spool) -> Iterator[None]:
    """Have a job's shepherds on this node one after the other.

    By the directory that execd made for the job: it is there before them, and goes after them.
    """
    directory = os.path.dirname(spool.directory) if spool.is_task else spool.directory
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_cgroup(place: paths.JobPaths) -> None:
    """Give the job a cgroup where its limits have made none: to find all of it at its end.

    execd kills by a group number, and only while the job's shepherd lives (sge_conf(5),
    ENABLE_ADDGRP_KILL).  Where there are no cgroups to be had, that is what there is.
    """
    from hpcwrap.container import limits

    if os.path.exists(place.entry) and not os.path.exists(place.cgroups):
        with suppress(SiteError):
            limits.make(NO_LIMITS, place)


def is_shared(place: paths.JobPaths, process: int) -> bool:
    """Become an owner of what an earlier shepherd of the job made; False where there is nothing."""
    there = os.path.exists(place.entry) or os.path.exists(place.error)
    return there and owners.alive(place) and owners.add(place, process)


def listener(spool: Spool) -> epilog.Listener:
    """Who is told of a limit that was reached, and where: the master's part of a job alone."""
    path, name = ("", "") if spool.is_task else gridengine.output(spool)
    return epilog.Listener(spool.config.get("job_owner", ""), path, name)
