"""The hpcwrap command: a table of verbs, and the only place that makes exit codes of errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import List, NamedTuple, Optional, Sequence

from hpcwrap import __version__, errors, hook, log


class Verb(NamedTuple):
    """A row of the table: module `hpcwrap.verbs.<name>` has configure() and run()."""

    name: str
    help: str


VERBS = (
    Verb("run", "run a command in an environment's container, without a scheduler"),
    Verb("pull", "fetch an image and make its squashfs, ready to start"),
    Verb("images", "list the images in the store"),
    Verb("image", "refresh, clean, verify, export or import the images of the store"),
    Verb("rm", "remove an image from the store"),
    Verb("env", "list environments, or show one as it is after inheritance"),
    Verb("plan", "show what the prolog would do for an environment, without doing it"),
    Verb("cdi", "list and check the devices of this node, or write a spec for NVIDIA's GPUs"),
    Verb("config", "show every setting, its value and where it came from"),
    Verb("setup", "connect hpcwrap to a scheduler, or check that it is"),
    Verb("status", "show jobs and nodes of the scheduler, and which containers jobs have"),
    Verb("top", "show live what container jobs use, on this node or in the cluster"),
    Verb("doctor", "examine this node, or all nodes, for what keeps containers from working"),
    Verb("enter", "put a shell or a command into the container of a running job"),
    Verb("sweep", "end what jobs left on this node that no epilog came for"),
    Verb("show", "show what a job asked for, what it got, how, and how long that took"),
)

EPILOG = """\
exit codes: 0 well, 2 the user can fix it, 3 the site can fix it, 4 the node is unfit;
`hpcwrap run` ends with its command's own code.

start here:  hpcwrap env list      hpcwrap pull debian-12      hpcwrap run debian-12 -- id
"""


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command line and leave with its exit code."""
    hook.leave(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: List[str]) -> int:
    """Run one command line; expected failures become one sentence and an exit code."""
    try:
        arguments = parse(argv)
        code = importlib.import_module(f"hpcwrap.verbs.{arguments.verb}").run(arguments)
        sys.stdout.flush()
        return int(code)
    except errors.HpcwrapError as error:
        log.say(error.sentence())
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has gone: python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def parse(argv: List[str]) -> argparse.Namespace:
    """Parse a command line; only the module of the verb that it names is imported."""
    parser = make_parser(verb_of(argv))
    return parser.parse_args(argv)


def make_parser(wanted: Optional[str] = None) -> argparse.ArgumentParser:
    """Build the parser; `wanted` names the one verb to configure, None configures them all."""
    parser = argparse.ArgumentParser(
        prog="hpcwrap",
        description="Containers for batch schedulers: jobs, steps and ranks inside an image.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hpcwrap {__version__}")
    parser.add_argument("--config", metavar="FILE", help="settings file to use")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        _add_verb(verbs, verb, configured=wanted is None or wanted == verb.name)
    return parser


def verb_of(argv: Sequence[str]) -> Optional[str]:
    """The verb on a command line, if there is one: the first of its words that is in the table."""
    names = {verb.name for verb in VERBS}
    return next((word for word in argv if word in names), "")


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], verb: Verb, *, configured: bool
) -> None:
    parser = verbs.add_parser(
        verb.name,
        help=verb.help,
        description=verb.help[0].upper() + verb.help[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if configured:
        importlib.import_module(f"hpcwrap.verbs.{verb.name}").configure(parser)
