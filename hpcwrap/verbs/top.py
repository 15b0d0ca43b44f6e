"""hpcwrap top: what container jobs use, live."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Callable, List, NamedTuple, Sequence, Tuple

from hpcwrap import config, human
from hpcwrap.errors import printable
from hpcwrap.schedulers import states
from hpcwrap.schedulers.states import RUNNING
from hpcwrap.table import print_table
from hpcwrap.usage import JobUsage, Meter
from hpcwrap.verbs.run import option
from hpcwrap.verbs.status import add_scheduler, format_container, format_nodes

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """\
Root sees all container jobs of the node, others their own.  What processes share counts once.  With
--cluster the scheduler is asked: all container jobs that run anywhere.  Ends with ^C; where stdout
is no terminal, it is printed once.
"""
FIRST_LOOK = 0.5
"""Seconds over which use of the processors is measured where there is but one look."""

NODE = ("job", "user", "container", "procs", "cpu", "memory", "runs for")
CLUSTER = ("job", "user", "container", "queue", "nodes", "runs for")
RIGHT = ("procs", "cpu", "memory", "runs for")


class Screen(NamedTuple):
    """One look: what the whole is called, the headings and the rows."""

    title: str
    headings: Sequence[str]
    rows: List[List[str]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--cluster", action="store_true", help="all nodes, as the scheduler has them"
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=option(parse_interval),
        default=2.0,
        help="time between two looks (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="print one look, and end")
    parser.add_argument("--json", action="store_true", help="print one look as a JSON document")
    add_scheduler(parser)


def parse_interval(text: str) -> float:
    """Seconds, a tenth at least."""
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise ValueError(f"{text} is not from 0.1 to 3600")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Show one look or many."""
    if arguments.cluster:
        return show(arguments, *cluster_looks(arguments))
    meter = Meter()
    if is_single(arguments):
        time.sleep(FIRST_LOOK)
    jobs: Callable[[], List[JobUsage]] = meter.look
    return show(arguments, lambda: node_screen(jobs()), lambda: [job._asdict() for job in jobs()])


def is_single(arguments: argparse.Namespace) -> bool:
    """Whether there is but one look."""
    return bool(arguments.once or arguments.json or not sys.stdout.isatty())


def show(
    arguments: argparse.Namespace,
    look: Callable[[], Screen],
    document: Callable[[], List[object]],
) -> int:
    """Print once, or until ^C."""
    if arguments.json:
        print(json.dumps(document(), indent=1))
    elif is_single(arguments):
        screen = look()
        print_table(screen.headings, screen.rows)
    else:
        show_live(arguments.interval, look)
    return 0


def show_live(interval: float, look: Callable[[], Screen]) -> None:
    """Draw again and again on the terminal's other screen, until ^C."""
    from rich.live import Live

    try:
        with Live(draw(look()), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(draw(look()), refresh=True)
    except KeyboardInterrupt:
        return


def draw(screen: Screen) -> Table:
    """A look as a table of rich."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=screen.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=True
    )
    for heading in screen.headings:
        right = heading in RIGHT
        table.add_column(
            heading,
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=2 if heading == "container" else None,
        )
    for row in screen.rows:
        table.add_row(*map(Text, row))
    return table


# ---- this node ----


def node_screen(jobs: List[JobUsage]) -> Screen:
    """The container jobs of this node."""
    load = os.getloadavg()[0]
    busy, memory = sum(job.cpu for job in jobs), sum(job.memory for job in jobs)
    title = (
        f"{os.uname().nodename}: {time.strftime('%H:%M:%S')}, load {load:.1f} of "
        f"{os.cpu_count()} CPUs; container jobs: {len(jobs)}, {busy:.1f} CPUs, "
        f"{human.format_binary(memory)}"
    )
    return Screen(title, NODE, [node_row(job) for job in jobs])


def node_row(job: JobUsage) -> List[str]:
    """A job as people see it."""
    cells = [job.job, job.user, format_container(job.container), str(job.processes)]
    cells += [f"{job.cpu * 100:.0f}%", human.format_binary(job.memory), format_elapsed(job.began)]
    return [printable(cell) for cell in cells]


def format_elapsed(began: float) -> str:
    """How long a job runs: ``12:05``, ``3:07:00``, ``2-01:00:00``."""
    seconds = int(max(0.0, time.time() - began))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{seconds % 60:02}"
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


# ---- the cluster ----


def cluster_looks(
    arguments: argparse.Namespace,
) -> Tuple[Callable[[], Screen], Callable[[], List[object]]]:
    """How to look at the whole cluster, for people and as data."""
    settings = config.load_config(arguments.config).settings
    name, reader = states.find(settings, arguments.scheduler)

    def running() -> List[states.JobState]:
        jobs = reader.read_jobs(settings)
        return [job for job in jobs if job.state == RUNNING and job.container]

    return (
        lambda: cluster_screen(name, running()),
        lambda: [job._asdict() for job in running()],
    )


def cluster_screen(scheduler: str, jobs: List[states.JobState]) -> Screen:
    """The container jobs of the scheduler."""
    nodes = {node for job in jobs for node in job.nodes}
    title = (
        f"{scheduler}: {time.strftime('%H:%M:%S')}; container jobs: {len(jobs)} "
        f"on {len(nodes)} nodes"
    )
    return Screen(title, CLUSTER, [cluster_row(job) for job in jobs])


def cluster_row(job: states.JobState) -> List[str]:
    """A job as people see it."""
    cells = [job.id, job.user, format_container(job.container), job.queue]
    cells += [format_nodes(job.nodes), format_elapsed(job.since)]
    return [printable(cell) for cell in cells]
