"""`hpcwrap run`: a command in an environment's container, without a scheduler."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress
from typing import Any, Callable, Dict, Optional

from hpcwrap import enter, epilog, human, log, paths, prolog
from hpcwrap.environment import DEVICE_PATTERN, Machine
from hpcwrap.errors import UserError
from hpcwrap.job import Limits, User, find_user
from hpcwrap.request import make_request
from hpcwrap.schedulers import load, local

ENVIRONMENT = "see `hpcwrap env list`; NAME@sha256:… for an image that it had before"
EPILOG = """\
Root prepares the container, and the given user joins it without any privilege.

examples:
  hpcwrap run --user alice debian-12 -- id          one command as alice
  sudo hpcwrap run debian-12                        a shell as yourself
  hpcwrap run --user alice --env OMP_NUM_THREADS=4 debian-12 -- ./a.out
  hpcwrap run --user alice --memory 2g --swap 0 --cpus 2 debian-12 -- ./a.out
                                                    all of it together in 2 GiB and 2 CPUs' time
  hpcwrap run --user alice --gpus 0 cuda -- nvidia-smi -L
                                                    with the first GPU, and no other

With limits, the command and all that it starts are in a cgroup of their own; what is left of them
when the command ends is killed.
"""
SIZES = "bytes, or with k, m, g or t"
LEAST_MEMORY = 1 << 20
USAGE = """\
hpcwrap run [--user USER] [--env NAME[=VALUE]]... [--memory SIZE [--swap SIZE]]
                   [--cpus NUMBER] [--cpuset LIST] [--pids NUMBER] [--hugetlb SIZE]
                   [--gpus all|none|LIST] [--device VENDOR/CLASS=NAME]...
                   ENVIRONMENT [-- COMMAND...]"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.epilog = EPILOG
    parser.usage = USAGE
    parser.add_argument("--user", help="who runs the command (default: who called sudo)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the command; without a value, ours is passed on",
    )
    configure_limits(parser)
    configure_devices(parser)
    parser.add_argument("environment", metavar="ENVIRONMENT", help=ENVIRONMENT)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="default: a shell")


def configure_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits of the command and all that it starts, together."""
    size: Dict[str, Any] = {"metavar": "SIZE", "type": option(parse_size)}
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        type=option(parse_memory),
        help=f"memory of all processes together ({SIZES}); the kernel kills what would go beyond",
    )
    parser.add_argument("--swap", help="swap beside the memory; 0: none", **size)
    parser.add_argument(
        "--cpus",
        metavar="NUMBER",
        type=option(parse_cpus),
        help="time of so many processors, such as 2 or 0.5",
    )
    parser.add_argument(
        "--cpuset", metavar="LIST", type=option(parse_list), help="run on these only, such as 0-3,8"
    )
    parser.add_argument(
        "--pids",
        metavar="NUMBER",
        type=option(parse_count),
        help="processes and threads at the same time",
    )
    parser.add_argument("--hugetlb", help="huge pages, of each of their sizes", **size)


def configure_devices(parser: argparse.ArgumentParser) -> None:
    """Add the devices, beside those of the environment."""
    parser.add_argument(
        "--gpus",
        metavar="all|none|LIST",
        type=option(parse_gpus),
        help="GPUs by number or UUID, such as 0,1 (default: as the environment says, and where "
        "that leaves it to the scheduler, none)",
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="VENDOR/CLASS=NAME",
        type=option(parse_device),
        help="a device of a CDI spec; see `hpcwrap cdi list`",
    )


def parse_gpus(text: str) -> str:
    """One of the words, or a list."""
    if not re.fullmatch(r"[A-Za-z0-9:._-]+(,[A-Za-z0-9:._-]+)*", text, re.ASCII):
        raise ValueError(f"{text!r} is no list of GPUs such as 0,1")
    return text


def parse_device(text: str) -> str:
    """The full name of a device."""
    if not re.fullmatch(DEVICE_PATTERN, text, re.ASCII):
        raise ValueError(f"{text!r} is no device such as vendor.example/gpu=0")
    return text


def option(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Have argparse show the reason of a ValueError, which it would hide."""

    def parse_option(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_option


def parse_size(text: str) -> int:
    """A number of bytes."""
    with suppress(ValueError):
        return human.parse_size(text)
    raise ValueError(f"{text!r} is no size such as 512m or 2g")


def parse_memory(text: str) -> int:
    """A number of bytes in which a process can live: `--memory 100` lacks its unit."""
    size = parse_size(text)
    if size < LEAST_MEMORY:
        raise ValueError(f"{text!r} is too little: the least is 1m")
    return size


def parse_cpus(text: str) -> float:
    """A number of processors; the kernel's least is 1 ms in each 100 ms."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text, re.ASCII) or float(text) < 0.01:
        raise ValueError(f"{text!r} is no number of processors such as 2 or 0.5")
    return float(text)


def parse_list(text: str) -> str:
    """A list of processors by number."""
    if not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", text, re.ASCII):
        raise ValueError(f"{text!r} is no list of processors such as 0-3,8")
    return text


def parse_count(text: str) -> int:
    """A number from 1 on."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text, re.ASCII):
        raise ValueError(f"{text!r} is no number from 1 on")
    return int(text)


def read_limits(arguments: argparse.Namespace) -> Limits:
    """The limits that were asked for.  Raises UserError."""
    if arguments.swap is not None and arguments.memory is None:
        raise UserError("cannot limit swap alone", "say --memory, too")
    return Limits(**{name: getattr(arguments, name) for name in Limits._fields})


def run(arguments: argparse.Namespace) -> int:
    """Prolog, enter and epilog in a row; the command's exit code is ours."""
    asked = Machine(gpus=arguments.gpus, devices=tuple(arguments.device))
    job = local.make_job(find_caller(arguments.user), read_limits(arguments))._replace(asked=asked)
    request = make_request(arguments.environment, "hpcwrap run")
    config_file = arguments.config or paths.CONFIG_FILE
    prolog.sweep_leftovers()
    try:
        if prolog.prolog(job, request, load("local"), config_file) is None:
            raise UserError("cannot run without a container", "name an environment")
        return enter.enter(job, command_of(arguments), arguments.env)
    finally:
        report(epilog.epilog(job.id))


def report(summary: Optional[Dict[str, Any]]) -> None:
    """Tell the user, and the log, when limits were reached, or lost."""
    if not summary:
        return
    if summary.get("lost_limits"):
        log.warn(summary["lost_limits"])
    for sentence, number in (("oom", "oom_kills"), ("pids", "pids_refused")):
        if summary.get(sentence):
            log.say(summary[sentence])
            log.stage_line("run", **{key: summary[key] for key in ("job", "user", "node", number)})


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
