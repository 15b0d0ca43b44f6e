"""hpcwrap doctor: examine this node, or all nodes, for what keeps containers from working."""

from __future__ import annotations

import argparse
import json
import os
from typing import Iterator, List

from hpcwrap import config
from hpcwrap.errors import EXIT_SITE, UserError
from hpcwrap.finding import NOTE, REPAIRED, WELL, WRONG, Finding, is_well
from hpcwrap.schedulers import states
from hpcwrap.schedulers.states import UP, NodeState
from hpcwrap.table import print_table
from hpcwrap.verbs import doctor_node, leftover, leftovers
from hpcwrap.verbs.status import add_scheduler

EPILOG = """\
Looks at the kernel, the store, the environments, the scheduler's hooks, the helper, and at what
jobs have left here, and changes nothing.  With --repair it removes what jobs have left, and looks
then; nothing of a job that runs is touched.  With --cluster it asks the scheduler which nodes are
drained or down, and why.  The exit code is 3 if anything is missing or wrong.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--cluster", action="store_true", help="all nodes, as the scheduler has them"
    )
    either.add_argument(
        "--repair", action="store_true", help="remove what jobs have left on this node (root)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--all", action="store_true", help="show what is well, too")
    add_scheduler(parser)


def run(arguments: argparse.Namespace) -> int:
    """Examine, and say what was found; EXIT_SITE when anything is missing or wrong."""
    found = list(cluster(arguments) if arguments.cluster else node(arguments))
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1))
    else:
        report(found, everything=arguments.all)
    return 0 if is_well(found) else EXIT_SITE


def node(arguments: argparse.Namespace) -> Iterator[Finding]:
    """This node; after a repair, what that removed goes first."""
    loaded = doctor_node.load_node(arguments.config, arguments.scheduler)
    if arguments.repair:
        yield from repair(loaded)
    yield from doctor_node.examine(loaded)


def repair(loaded: doctor_node.Node) -> Iterator[Finding]:
    """Remove what jobs have left.  Raises UserError for who is not root."""
    if os.geteuid() != 0:
        raise UserError("cannot repair this node: that needs root")
    for left in leftovers.repair(leftover.Node(loaded.settings, loaded.scheduler)):
        yield left.finding._replace(state=REPAIRED)


def cluster(arguments: argparse.Namespace) -> Iterator[Finding]:
    """All nodes of the scheduler."""
    settings = config.load_config(arguments.config).settings
    _, reader = states.find(settings, arguments.scheduler)
    return (find_state(each) for each in reader.read_nodes(settings))


def find_state(state: NodeState) -> Finding:
    """What the scheduler says of a node, as a finding."""
    detail = f"{state.word}: {state.reason}" if state.reason else state.word
    return Finding(state.name, "node", WELL if state.state == UP else WRONG, detail)


def report(found: List[Finding], *, everything: bool) -> None:
    """Print what is not well, and how much is."""
    order = {WELL: 3, NOTE: 2, REPAIRED: 1}
    shown = [finding for finding in found if everything or finding.state != WELL]
    shown.sort(key=lambda finding: order.get(finding.state, 0))
    if shown:
        rows = [[each.state, each.file, each.what, each.detail] for each in shown]
        print_table(("state", "where", "what", "detail"), rows)
    well = sum(finding.state == WELL for finding in found)
    print(f"looked at {len(found)}: {well} well" + ("" if everything else " (--all shows them)"))
