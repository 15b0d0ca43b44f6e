"""Enter: a command starts inside the container that the prolog made.

Under Slurm this stage is native/spank_hpcwrap.c, for ranks start by the thousand; here it is for
`hpcwrap run` and, as `main`, for schedulers whose hook sees a process before it starts.  All are
thin users of native/enter.c, which does the joining.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Dict, Iterable, List, NoReturn, Optional, Sequence

from hpcwrap import log, owners, paths, record, run, schedulers
from hpcwrap.environment import parse_rlimit
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.job import Job, User

FAILED = 125
"""What hpcwrap-enter ends with, too, when the command could not be started at all."""


def enter(job: Job, command: Sequence[str], variables: Iterable[str] = ()) -> int:
    """Run a command as the job's user in its container, to its end.

    `variables` are K=V for the command.  Returns its exit code, 128 + N when signal N ended it.
    """
    from hpcwrap import terminal

    program = paths.enter_program()
    if not os.path.exists(program):
        raise SiteError(f"cannot find {program}", "compile it by `hpcwrap setup`")
    place = paths.JobPaths(job.id)
    argv = [program, place.directory, "--", *command]
    env = {**login_environment(job.user), **dict(split(variable) for variable in variables)}
    made = record.read_record(place)
    return terminal.run(partial(become_command, job, argv, env, made))


def become_command(
    job: Job, argv: List[str], env: Dict[str, str], made: Optional[record.Record]
) -> NoReturn:
    """The child's part: what only root can give it, then the user's identity, then the command.

    A process's edge: a failure is told in a sentence, and the code is FAILED.
    """
    try:
        # First of all: a lower limit of files hides those above it from sysconf(3).
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        join_limits(paths.JobPaths(job.id))
        set_rlimits(made.rlimits if made else ())
        become(job.user)
        run.execute(argv, env)
    except HpcwrapError as error:
        log.say(error.sentence())
    except OSError as error:
        log.say(f"cannot start {argv[0]}: {error.strerror}")
    finally:
        os._exit(FAILED)


def join_limits(place: paths.JobPaths, process: int = 0) -> None:
    """Move a process, or this one, into the job's cgroup, where it has one.  Raises SiteError."""
    if os.path.exists(place.cgroups):
        from hpcwrap.container import limits

        limits.join(place, process)


def set_rlimits(texts: Iterable[str], process: int = 0) -> None:
    """Set limits of a process, or this one, and so of all that it starts.  Raises SiteError."""
    import resource

    for text in texts:
        limit = parse_rlimit(text)
        number = getattr(resource, f"RLIMIT_{limit.name.upper()}")
        try:
            resource.prlimit(process, number, (limit.soft, limit.hard))
        except (OSError, ValueError) as error:
            raise SiteError(
                f"cannot set the limit {text}: {error}",
                "see rlimits in the settings, and for nofile /proc/sys/fs/nr_open",
            ) from error


def become(user: User) -> None:
    """Become the user for good, with no signal ignored that Python ignores."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.setgroups(list(user.groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def login_environment(user: User) -> Dict[str, str]:
    """What a fresh login would have; the image's and the site's variables come on top."""
    return run.base_environment(HOME=user.home, USER=user.name, LOGNAME=user.name, SHELL=user.shell)


def main(scheduler: str) -> int:
    """Run as a hook of the scheduler's for a process that is about to become the user's.

    $HPCWRAP_PROCESS gets what only root can give it; it joins the container by itself, later.
    """
    try:
        job = schedulers.load(scheduler).read_job_id(os.environ)
        adopt(paths.JobPaths(job), int(os.environ["HPCWRAP_PROCESS"]))
    except HpcwrapError as error:
        log.say(error.sentence())
        return error.exit_code
    return 0


def adopt(place: paths.JobPaths, process: int) -> None:
    """Give a process the limits of the job, as a whole and of each process.

    A prolog that is still at work is waited for.  Raises HpcwrapError.
    """
    with owners.turn(place):
        made = record.read_record(place)
        join_limits(place, process)
    set_rlimits(made.rlimits if made else (), process)


def split(variable: str) -> tuple[str, str]:
    """K=V as a pair; K alone takes its value from our own environment, as `env` does it."""
    name, sign, value = variable.partition("=")
    return name, value if sign else os.environ.get(name, "")
