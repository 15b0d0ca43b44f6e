"""Watch: the epilog where the scheduler tells nobody of a job's end on a node.

native/hpcwrap-wait, a process of a page or two, sleeps until an owner of the job has ended; then
`main` ends the job, or waits for another of its owners.  Where it is killed, a sweep takes over.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional

from hpcwrap import epilog, log, owners, paths, run, schedulers
from hpcwrap.errors import HpcwrapError
from hpcwrap.job import User, find_user
from hpcwrap.record import publish

SCRIPT = "gridengine.sh"


class Listener(NamedTuple):
    """Who is told of a limit that the job reached: a user, in the user's own file.

    `path` is the file, or its directory: then `name` is the file's.  Without a path, nobody is.
    """

    user: str
    path: str
    name: str


def start(place: paths.JobPaths, process: int, listener: Listener) -> None:
    """Have the job ended when `process`, and all its other owners, have ended."""
    publish(place.listener, json.dumps(listener).encode(), 0o600)
    end = os.pidfd_open(process)
    try:
        run.detach(command(place, end), end)
    finally:
        os.close(end)


def command(place: paths.JobPaths, end: int) -> List[str]:
    """What waits for the process behind a descriptor, and then comes to `main`."""
    script = paths.data("epilog", SCRIPT)
    return [paths.wait_program(), str(end), script, os.path.basename(place.directory)]


def main(scheduler: str) -> int:
    """Run when an owner of a job has ended; the exit code."""
    try:
        place = paths.JobPaths(schedulers.load(scheduler).read_job_id(os.environ))
        left = finish(place)
    except HpcwrapError as error:
        log.stage_line("epilog", error=error.sentence())
        return error.exit_code
    if left:
        end = os.pidfd_open(left[0])
        os.set_inheritable(end, True)
        run.execute(command(place, end), run.base_environment())
    return 0


def finish(place: paths.JobPaths) -> List[int]:
    """End a job that has no owners left; those that it has.  Raises HpcwrapError."""
    with owners.turn(place):
        left = owners.running(place)
        if left or not os.path.isdir(place.directory):
            return left
        listener = read_listener(place)
        summary = epilog.finish(place)
    if summary is not None:
        tell(listener, summary)
        epilog.keep(summary)
    return []


def read_listener(place: paths.JobPaths) -> Optional[Listener]:
    """Who is to be told; None for nobody."""
    with suppress(OSError, ValueError, TypeError), open(place.listener, encoding="utf-8") as file:
        return Listener(*json.load(file))
    return None


def tell(listener: Optional[Listener], summary: Dict[str, Any]) -> None:
    """Append what the kernel did to the job's own output; what cannot be told is in the log."""
    sentences = [summary[key] for key in ("oom", "pids", "lost_limits") if summary.get(key)]
    if not sentences or listener is None or not listener.path:
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    with suppress(BaseException):
        append(find_user(listener.user), listener, sentences)
    os._exit(0)


def append(user: User, listener: Listener, sentences: List[str]) -> None:
    """Write to a file as its user, for good: every part of the path may be the user's own."""
    os.setgroups(list(user.groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    path = listener.path
    if os.path.isdir(path):
        path = os.path.join(path, listener.name)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.write(fd, "".join(f"hpcwrap: {each}\n" for each in sentences).encode())
