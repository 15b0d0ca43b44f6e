"""The verbs of `tools/cluster`, and the one place where its errors become exit codes."""

from __future__ import annotations

import argparse
import os
import time
from typing import Optional, Sequence

from clusterlib import lifecycle, processes, reboot, services
from clusterlib.edge import run_verb, tool_parser
from clusterlib.layout import (
    CONTROLLER,
    DEFAULT_NODES,
    DEFAULT_STATE,
    MAX_NODES,
    OWN_SLURM,
    SCHEDULERS,
    SLURM_SUITES,
    USERS,
    Cluster,
    User,
    address,
)

EPILOG = """\
A cluster is ctl (submit host, slurmctld, registry) and n1, n2, … (slurmd), each a node with its
own network, processes, mounts and /etc over this machine's packages.  Slurm may be another of
the schedulers.  For example:

  tools/cluster up                       two compute nodes, ready in a few seconds
  tools/cluster up --slurm 24.11         Slurm of Debian 13, in nodes over its packages
  tools/cluster up --scheduler gridengine
  tools/cluster as alice srun -N2 hostname
  tools/cluster as alice                 a login shell on the submit host
  tools/cluster exec n1 tail -f /var/log/slurm/slurmd.log
  tools/cluster exec ctl                 a root shell on a node
  tools/cluster restart                  after a change of /etc/slurm/slurm.conf
  tools/cluster reboot n1 sh /shared/boot.sh
  tools/cluster down                     nothing of it is left

The nodes share /home, /opt/hpcwrap, /shared and /etc/slurm; these are home, opt, shared and
etc-slurm in the state directory.  Images go to docker://registry:5000/.  Users: alice and bob.
"""


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    return run_verb(make_parser(), argv, "make or enter nodes")


def make_parser() -> argparse.ArgumentParser:
    """The command line; --state is taken before and after the verb."""
    shared = argparse.ArgumentParser(add_help=False)
    where = f"where the cluster keeps its files (default: $HPCWRAP_CLUSTER or {DEFAULT_STATE})"
    shared.add_argument("--state", metavar="DIR", default=argparse.SUPPRESS, help=where)
    parser = tool_parser(
        "cluster", "A real multi-node cluster on this one machine.", EPILOG, [shared]
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_lifecycle_verbs(verbs, shared)
    _add_entering_verbs(verbs, shared)
    return parser


def _add_lifecycle_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    start = verbs.add_parser("up", parents=[shared], help="bring the cluster up")
    start.add_argument("--nodes", type=node_count, default=DEFAULT_NODES, metavar="N")
    start.add_argument("--scheduler", choices=SCHEDULERS, default=SCHEDULERS[0])
    start.add_argument(
        "--slurm",
        type=slurm_release,
        default=os.environ.get("HPCWRAP_SLURM") or OWN_SLURM,
        metavar="RELEASE",
        help=f"{', '.join(SLURM_SUITES)} (default: $HPCWRAP_SLURM or {OWN_SLURM})",
    )
    start.set_defaults(verb=up)
    for name, verb, text in (
        ("down", down, "take it down; safe to repeat, and after any crash"),
        ("restart", restart, "restart the scheduler when no job is left"),
        ("status", status, "say what is up; exit code 1 when nothing is"),
    ):
        verbs.add_parser(name, parents=[shared], help=text).set_defaults(verb=verb)

    again = verbs.add_parser("reboot", parents=[shared], help="a node without a disk boots anew")
    again.add_argument("node", metavar="NODE", help="n1, n2, …")
    again.add_argument(
        "command",
        metavar="CMD…",
        nargs=argparse.REMAINDER,
        help="sets the node up as root, before the scheduler's daemon starts",
    )
    again.set_defaults(verb=reboot_node)


def _add_entering_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    root = verbs.add_parser("exec", parents=[shared], help="run a command as root on a node")
    root.add_argument("node", metavar="NODE", help="ctl, n1, n2, …")
    root.set_defaults(verb=execute)
    login = verbs.add_parser("as", parents=[shared], help="run a command as a user on ctl")
    login.add_argument("user", metavar="USER", type=cluster_user, help="alice or bob")
    login.set_defaults(verb=execute_as)
    for parser in (root, login):
        parser.add_argument(
            "command", metavar="CMD…", nargs=argparse.REMAINDER, help="default: a login shell"
        )


def node_count(text: str) -> int:
    """A number of compute nodes, from the command line."""
    if not text.isdigit() or not 1 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MAX_NODES}")
    return int(text)


def slurm_release(text: str) -> str:
    """A release of Slurm, from the command line or the environment."""
    if text not in SLURM_SUITES:
        raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(SLURM_SUITES)}")
    return text


def cluster_user(text: str) -> User:
    """A user of the cluster, from the command line."""
    for user in USERS:
        if user.name == text:
            return user
    names = " and ".join(user.name for user in USERS)
    raise argparse.ArgumentTypeError(f"there is no user {text}: the cluster has {names}")


def state_of(options: argparse.Namespace) -> str:
    """The state directory that the command line, else the environment, names."""
    given: Optional[str] = getattr(options, "state", None)
    return os.path.realpath(given or os.environ.get("HPCWRAP_CLUSTER") or DEFAULT_STATE)


def up(options: argparse.Namespace) -> int:
    """`up`: bring it up, and say what there is."""
    scheduler = services.load(options.scheduler)
    before = time.monotonic()
    root = scheduler.lower_root(options.slurm)
    cluster = Cluster(state_of(options), options.nodes, root, options.scheduler)
    made = lifecycle.up(cluster)
    if not made:
        print(f"The cluster in {cluster.state} is up already.")
        return 0
    seconds = time.monotonic() - before
    print(f"The cluster is up after {seconds:.1f} s; its files are in {cluster.state}")
    print(f"  ctl   {address(CONTROLLER):12} submit host, {scheduler.ROLES[0]}, registry:5000")
    for node in cluster.compute_names:
        print(f"  {node:5} {address(node):12} {scheduler.ROLES[1]}")
    print(f"Try: tools/cluster as alice {scheduler.EXAMPLE}")
    return 0


def down(options: argparse.Namespace) -> int:
    """`down`: take it down."""
    state = state_of(options)
    before = time.monotonic()
    if lifecycle.down(state):
        print(f"The cluster in {state} is gone after {time.monotonic() - before:.1f} s.")
    else:
        print(f"No cluster is in {state}.")
    return 0


def restart(options: argparse.Namespace) -> int:
    """`restart`: let the scheduler read its configuration anew."""
    before = time.monotonic()
    lifecycle.restart(state_of(options))
    print(f"The scheduler has restarted after {time.monotonic() - before:.1f} s.")
    return 0


def reboot_node(options: argparse.Namespace) -> int:
    """`reboot`: one node loses all that it had for itself, and comes up again."""
    before = time.monotonic()
    reboot.reboot(state_of(options), options.node, without_dashes(options.command))
    print(f"{options.node} is up again after {time.monotonic() - before:.1f} s.")
    return 0


def status(options: argparse.Namespace) -> int:
    """`status`: a line a node."""
    lines = lifecycle.status(state_of(options))
    for line in lines:
        print(f"{line.node:5} {line.address:12} process {line.pid:<8} {line.state}")
    if not lines:
        print(f"No cluster is up in {state_of(options)}.")
    return 0 if lines else 1


def execute(options: argparse.Namespace) -> int:
    """`exec`: a command of root's on a node."""
    return enter(options, options.node, processes.root_identity())


def execute_as(options: argparse.Namespace) -> int:
    """`as`: a command of a user's on the submit host."""
    return enter(options, CONTROLLER, processes.user_identity(options.user))


def enter(options: argparse.Namespace, node: str, identity: processes.Identity) -> int:
    """Run the command of the command line, or a login shell, in a node."""
    command = without_dashes(options.command)
    pid = processes.node_pid(state_of(options), node)
    return processes.enter(pid, command or ["/bin/bash", "-l"], identity)


def without_dashes(words: Sequence[str]) -> Sequence[str]:
    """A command without the `--` that may stand before it."""
    return words[1:] if words[:1] == ["--"] else words
