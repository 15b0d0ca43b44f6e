"""`hpcwrap run`: a command in an environment's container, without a scheduler."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress

from hpcwrap import enter, epilog, paths, prolog
from hpcwrap.errors import UserError
from hpcwrap.job import User, find_user
from hpcwrap.request import make_request
from hpcwrap.schedulers import load, local

ENVIRONMENT = "see `hpcwrap env list`; NAME@sha256:… for an image that it had before"
EPILOG = """\
Root prepares the container, and the given user joins it without any privilege.

examples:
  hpcwrap run --user alice debian-12 -- id          one command as alice
  sudo hpcwrap run debian-12                        a shell as yourself
  hpcwrap run --user alice --env OMP_NUM_THREADS=4 debian-12 -- ./a.out
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.epilog = EPILOG
    parser.usage = "hpcwrap run [--user USER] [--env NAME[=VALUE]]... ENVIRONMENT [-- COMMAND...]"
    parser.add_argument("--user", help="who runs the command (default: who called sudo)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the command; without a value, ours is passed on",
    )
    parser.add_argument("environment", metavar="ENVIRONMENT", help=ENVIRONMENT)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: a shell")


def run(arguments: argparse.Namespace) -> int:
    """Prolog, enter and epilog in a row; the command's exit code is ours."""
    job = local.make_job(find_caller(arguments.user))
    request = make_request(arguments.environment, "hpcwrap run")
    config_file = arguments.config or paths.CONFIG_FILE
    sweep()
    try:
        if prolog.prolog(job, request, load("local"), config_file) is None:
            raise UserError("cannot run without a container", "name an environment")
        return enter.enter(job, command_of(arguments), arguments.env)
    finally:
        epilog.epilog(job.id)


def find_caller(name: str | None) -> User:
    """Find the user that the command is for.  Raises UserError."""
    if os.geteuid() != 0:
        raise UserError(
            "cannot prepare a container without root's rights",
            "use sudo, or a job of your scheduler",
        )
    wanted = name or os.environ.get("SUDO_USER")
    if not wanted:
        raise UserError("cannot tell who is to run the command", "say --user USER")
    return find_user(wanted)


def command_of(arguments: argparse.Namespace) -> list[str]:
    """The command of the line, after the optional --; a shell when there is none."""
    words = list(arguments.command)
    if words[:1] == ["--"]:
        words = words[1:]
    return words or ["/bin/sh"]


def sweep() -> None:
    """Release what runs left that were killed: jobs of ours whose process is gone."""
    with suppress(FileNotFoundError):
        for job_id in os.listdir(paths.JOBS):
            if not local.has_owner(job_id):
                epilog.epilog(job_id)
