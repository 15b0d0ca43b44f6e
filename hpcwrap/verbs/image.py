"""hpcwrap image: what is done to the images of the store as a whole; a table of actions."""

from __future__ import annotations

import argparse
import importlib
from typing import NamedTuple


class Action(NamedTuple):
    """A row of the table: module `hpcwrap.verbs.<module>` has configure() and run()."""

    name: str
    module: str
    help: str


ACTIONS = (
    Action("refresh", "refresh", "ask registries again what tags mean, pull what moved"),
    Action("gc", "gc", "remove what nobody needs: unused images, leftovers, lost leases"),
    Action("verify", "verify", "read all images and compare them with what was put there"),
    Action("export", "exporting", "write an image into a file that podman and docker load, too"),
    Action("import", "importing", "take an image from such a file into the store"),
)


EPILOG = """\
`hpcwrap image ACTION --help` has examples.  See also hpcwrap pull, images and rm.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions, each with the arguments of its module."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action in ACTIONS:
        sub = actions.add_parser(
            action.name,
            help=action.help,
            description=action.help[0].upper() + action.help[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        importlib.import_module(f"hpcwrap.verbs.{action.module}").configure(sub)


def run(arguments: argparse.Namespace) -> int:
    """Run the action."""
    module = next(action.module for action in ACTIONS if action.name == arguments.action)
    return int(importlib.import_module(f"hpcwrap.verbs.{module}").run(arguments))
