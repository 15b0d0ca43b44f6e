"""hpcwrap enter: a shell or a command in the container of a job that runs, as the job's user.

Two roads, by whose rights a container is joined.  Under Slurm it takes root's: so the scheduler
itself starts a step beside those of the job, from any host.  Elsewhere the job's user may join, and
nobody else: hpcwrap-enter does, on the job's node.  docs/decisions/0147-enter-a-running-job.md
"""

from __future__ import annotations

import argparse
import fcntl
import getopt
import os
import struct
import sys
from contextlib import suppress
from functools import partial
from typing import List, NoReturn, Optional, Tuple

from hpcwrap import config, enter, log, paths, terminal
from hpcwrap import run as programs
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import Job, User, find_user
from hpcwrap.schedulers import slurm_enter
from hpcwrap.schedulers.states import find_command
from hpcwrap.textfile import read_text
from hpcwrap.verbs import jobname

EPILOG = """\
The job's user may do this, and root, who becomes that user.

Under Slurm the command is one more step of the job (srun --overlap): it may be started from any
host where srun works, has the job's limits, and ends with the job.  Elsewhere say it on a node of
the job; JOB is the scheduler's number, or the name of a directory in /run/hpcwrap/jobs.  There the
command is as one of an ssh session: it outlives the job, and only root's has the job's limits.

examples:
  hpcwrap enter 4711                       a shell on this node, or on the job's first
  hpcwrap enter --node n7 4711 -- top      a command on another of its nodes
"""

SHELL = ["/bin/sh", "-c", 'exec "$(command -v "${SHELL:-sh}" || echo /bin/sh)"']
"""The user's shell where the image has it."""

NS_GET_OWNER_UID = 0xB704
"""ioctl_ns(2): whose a user namespace is."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument("--node", metavar="NODE", help="which node of the job (Slurm only)")
    parser.add_argument("job", metavar="JOB", help="the scheduler's number of the job")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="what to start (default: a shell)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Enter the job's container; ends with the command's own code."""
    settings = config.load_config(arguments.config).settings
    node, command = split(arguments.command)
    node = node or arguments.node
    place = find_place(arguments.job)
    if place is not None and node is None:
        return join(place, arguments.job, command or SHELL)
    if is_number(arguments.job) and find_command("squeue", settings.slurm_commands):
        return begin_step(arguments.job, node, command or SHELL, settings)
    raise UserError(
        f"cannot enter the job {arguments.job}: it has no container on this node",
        "say this on a node where it runs, see `hpcwrap status`",
    )


def split(words: List[str]) -> Tuple[Optional[str], List[str]]:
    """The node, if it is named after the job, and the command: argparse takes both for a command.

    Raises UserError for any other option.
    """
    try:
        options, command = getopt.getopt(words, "", ["node="])
    except getopt.GetoptError as error:
        raise UserError(f"cannot enter a job: {error}", "a command comes after --") from None
    return dict(options).get("--node"), command


def find_place(job_id: str) -> Optional[paths.JobPaths]:
    """The directory of a job here whose container its user may join; None without.

    A number alone is Slurm's, whose containers root joins.
    """
    if os.path.basename(job_id) != job_id or job_id in ("", ".", ".."):
        raise UserError(f"cannot enter the job {job_id!r}: that is no number of a job")
    names = jobname.listed(jobname.parse(job_id, []), paths.JOBS)
    found = (paths.JobPaths(name, paths.JOBS) for name in names if not name.isdigit())
    return next((place for place in found if os.path.isdir(place.directory)), None)


def is_number(job_id: str) -> bool:
    """Whether Slurm could have given it: 7, or 5_2 for an array's."""
    return job_id.replace("_", "", 1).isdigit()


# ---- as the job's user ----


def join(place: paths.JobPaths, job_id: str, command: List[str]) -> int:
    """Join the container from here, as its user; the command's code.  Raises UserError."""
    sentence = read_text(place.error).strip()
    if sentence:
        raise UserError(f"cannot enter the job {job_id}: it has no container: {sentence}")
    owner = owner_of(place)
    if owner is None:
        raise UserError(
            f"cannot enter the job {job_id}: its container is not ready", "try again in a moment"
        )
    if os.geteuid() not in (0, owner):
        raise UserError(f"cannot enter the job {job_id}: it is not yours", "only its user may")
    if os.geteuid() != 0:
        become_command(place, job_id, command)
    user = find_user(str(owner))
    return enter.enter(Job(os.path.basename(place.directory), "", user, "", ""), command)


def become_command(place: paths.JobPaths, job_id: str, command: List[str]) -> NoReturn:
    """Become the command, as we are: cgroups are root's to give."""
    if os.path.exists(place.cgroups):
        log.warn(f"the job {job_id} has limits that do not bind what you start in it by hand")
    programs.execute([paths.enter_program(), place.directory, "--", *command], os.environ)


def owner_of(place: paths.JobPaths) -> Optional[int]:
    """The uid of the user namespace's owner, as the kernel knows it; None: there is none."""
    try:
        fd = os.open(place.user_namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(fd, NS_GET_OWNER_UID, bytes(4))
        finally:
            os.close(fd)
    except OSError:
        return None
    return int(struct.unpack("I", answer)[0])


# ---- by a step of Slurm's ----


def begin_step(job_id: str, node: Optional[str], command: List[str], settings: Settings) -> int:
    """Become srun, or have a child become it as the job's user; its code.

    Raises UserError for what srun would not explain.
    """
    job = slurm_enter.read_job(job_id, settings)
    check(job, job_id, node)
    user = find_user(job.uid)
    if os.geteuid() not in (0, user.uid):
        raise UserError(f"cannot enter the job {job_id}: it is {user.name}'s", "only its user may")
    there = node or slurm_enter.own_node(job.nodes) or job.nodes[0]
    argv = slurm_enter.step(job, there, command, settings, terminal=sys.stdin.isatty())
    if os.geteuid() == 0:
        return terminal.run(partial(become_step, argv, user))
    try:
        programs.execute(argv, slurm_enter.clean(dict(os.environ)))
    except OSError as error:
        raise SiteError(f"cannot start {argv[0]}: {error.strerror}") from error


def become_step(argv: List[str], user: User) -> NoReturn:
    """Root's child becomes srun, as the job's user: a process's edge."""
    kept = {name: os.environ[name] for name in (slurm_enter.KEPT, "TERM") if name in os.environ}
    env = {**enter.login_environment(user), **kept}
    try:
        enter.become(user)
        with suppress(OSError):
            os.chdir(user.home)
        programs.execute(argv, slurm_enter.clean(env))
    except OSError as error:
        log.say(f"cannot start {argv[0]}: {error.strerror}")
    finally:
        os._exit(enter.FAILED)


def check(job: slurm_enter.Running, job_id: str, node: Optional[str]) -> None:
    """See that there is something to enter.  Raises UserError."""
    if job.state != "RUNNING":
        raise UserError(f"cannot enter the job {job_id}: it is not running ({job.state.lower()})")
    here = paths.JobPaths(job.id)
    if not job.container and not os.path.isdir(here.directory):
        raise UserError(
            f"cannot enter the job {job_id}: it has no container",
            f"for a shell beside it: srun --overlap --pty --jobid={job_id} bash",
        )
    if node is not None and node not in job.nodes:
        raise UserError(
            f"cannot enter the job {job_id} on {node}: it runs on {', '.join(job.nodes)}"
        )
