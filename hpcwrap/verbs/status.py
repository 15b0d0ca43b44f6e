"""hpcwrap status: jobs that wait or run, with their containers, and nodes, on any scheduler."""

from __future__ import annotations

import argparse
import json
import os
import pwd
from collections import Counter
from typing import List

from hpcwrap import config, human
from hpcwrap.errors import printable
from hpcwrap.schedulers import states
from hpcwrap.schedulers.states import READERS, RUNNING, JobState, NodeState
from hpcwrap.table import print_table

EPILOG = """\
examples:
  hpcwrap status                 your jobs; root's question is for everybody's
  hpcwrap status --user all      everybody's
  hpcwrap status --nodes         the nodes, and how many jobs with containers each has

The container is NAME@sha256:… as the scheduler has noted it.  LSF notes none.
"""
ALL = "all"
DIGITS = 12
"""So much of a digest tells images apart."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument("--user", metavar="USER", help="whose jobs (default: yours, root: all)")
    parser.add_argument("--nodes", action="store_true", help="show the nodes instead")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_scheduler(parser)


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    """Add the option for hosts with the commands of several schedulers."""
    parser.add_argument(
        "--scheduler", choices=READERS, help="which to ask (default: the one that is here)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask the scheduler and print what it says."""
    settings = config.load_config(arguments.config).settings
    _, reader = states.find(settings, arguments.scheduler)
    jobs = reader.read_jobs(settings)
    nodes = sorted(reader.read_nodes(settings)) if arguments.nodes or arguments.json else []
    wanted = arguments.user or caller()
    shown = [job for job in jobs if wanted in (ALL, job.user)]
    if arguments.json:
        document = {
            "jobs": [job._asdict() for job in shown],
            "nodes": [node._asdict() for node in nodes],
        }
        print(json.dumps(document, indent=1))
    elif arguments.nodes:
        print_nodes(nodes, jobs)
    else:
        print_jobs(shown)
    return 0


def caller() -> str:
    """Whose jobs are shown to who does not say: behind sudo, of whoever called that."""
    name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    return ALL if name == "root" else name


def print_jobs(jobs: List[JobState]) -> None:
    """Print a line for each job."""
    headings = ("job", "user", "state", "container", "queue", "nodes", "since", "name")
    print_table(headings, [job_cells(job) for job in jobs])


def job_cells(job: JobState) -> List[str]:
    """What people see of a job."""
    since = human.format_age(job.since) if job.since else "-"
    cells = [job.id, job.user, job.state, format_container(job.container), job.queue]
    cells += [format_nodes(job.nodes), since, job.name]
    return [printable(cell) or "-" for cell in cells]


def format_container(container: str) -> str:
    """NAME@DIGEST with as much of the digest as tells images apart."""
    name, at, digest = container.partition("@sha256:")
    return f"{name}{at and '@'}{digest[:DIGITS]}"


def format_nodes(nodes: tuple[str, ...]) -> str:
    """Few nodes by name, many by number."""
    return ",".join(nodes) if len(nodes) <= 3 else f"{nodes[0]},… ({len(nodes)})"


def print_nodes(nodes: List[NodeState], jobs: List[JobState]) -> None:
    """Print a line for each node."""
    busy = Counter(node for job in jobs if job.container for node in running_on(job))
    headings = ("node", "state", "scheduler says", "containers", "reason")
    rows = [
        [node.name, node.state, node.word or "-", str(busy[node.name]), printable(node.reason)]
        for node in nodes
    ]
    print_table(headings, rows)


def running_on(job: JobState) -> List[str]:
    """The nodes on which a job runs now."""
    return list(job.nodes) if job.state == RUNNING else []
