"""Enter: a command starts inside the container that the prolog made.

Under Slurm this stage is native/spank_hpcwrap.c, for ranks start by the thousand; here it is for
`hpcwrap run`.  Both are thin users of native/enter.c, which does the joining.
"""

from __future__ import annotations

import os
import signal
from typing import Any, Dict, Iterable, Sequence

from hpcwrap import paths, run
from hpcwrap.errors import SiteError
from hpcwrap.job import Job, User

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def enter(job: Job, command: Sequence[str], variables: Iterable[str] = ()) -> int:
    """Run a command as the job's user in its container, on our terminal, to its end.

    `variables` are K=V for the command.  Returns its exit code, 128 + N when signal N ended it.
    """
    program = paths.enter_program()
    if not os.path.exists(program):
        raise SiteError(f"cannot find {program}", "compile it by `hpcwrap setup`")
    place = paths.JobPaths(job.id)
    user = job.user
    child = run.spawn(
        [program, place.directory, "--", *command],
        stdin=0,
        env={**login_environment(user), **dict(split(variable) for variable in variables)},
        cwd=job.workdir,
        identity=run.Identity(user.uid, user.gid, user.groups),
    )
    return wait(child)


def login_environment(user: User) -> Dict[str, str]:
    """What a fresh login would have; the image's and the site's variables come on top."""
    return run.base_environment(HOME=user.home, USER=user.name, LOGNAME=user.name, SHELL=user.shell)


def split(variable: str) -> tuple[str, str]:
    """K=V as a pair; K alone takes its value from our own environment, as `env` does it."""
    name, sign, value = variable.partition("=")
    return name, value if sign else os.environ.get(name, "")


def wait(child: Any) -> int:
    """Wait for the command; signals for us are passed on to it, ^C reaches it by the terminal."""
    for number in PASSED_ON:
        signal.signal(number, lambda caught, _frame: child.send_signal(caught))
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    code = int(child.wait())
    return 128 - code if code < 0 else code
