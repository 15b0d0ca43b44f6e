"""`hpcwrap timing`: where the time of a finished job's containers went."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from statistics import median
from typing import Any, Dict, Iterator, List

from hpcwrap.config import load_config
from hpcwrap.errors import UserError

STEPS = (
    *("jitter", "wait", "resolve", "download", "unpack", "convert", "publish", "copy"),
    "prolog",
)
"""In the order in which they happen; `wait` is for another node's pull of the same image, `copy`
for the node's cache, whoever of its jobs copied.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.epilog = "The epilog keeps the times in the file that the setting `log` names.\n"
    parser.add_argument("job", metavar="JOB", help="the job's id")
    parser.add_argument("--json", action="store_true", help="one document a node")


def run(arguments: argparse.Namespace) -> int:
    """Print a table with a row for each node and step."""
    path = load_config(arguments.config).settings.log
    found = list(find(path, arguments.job))
    if not found:
        raise UserError(
            f"cannot find job {arguments.job} in {path}",
            "its epilog has not run yet, it had no container, or the log is another node's",
        )
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 0


def find(path: str, job: str) -> Iterator[Dict[str, Any]]:
    """Read a job's lines from the log; broken lines are left out."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            # Cheaper than to decode every line of a log that may be years long.
            if f'"job": "{job}"' in line:
                with suppress(ValueError):
                    yield json.loads(line)


def show(found: List[Dict[str, Any]]) -> None:
    """Print the table for people."""
    from rich.console import Console
    from rich.table import Table

    first = found[0]
    console = Console()
    console.print(f"job {first['job']} of {first['user']}: {first['environment']}")
    console.print(f"[dim]{first['reference']} {first['digest']}[/dim]")
    if first.get("warning"):
        console.print(f"warning: {first['warning']}", markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("node", "step", "ms", ""):
        table.add_column(title, justify="right" if title == "ms" else "left")
    longest = max(time for summary in found for _, time in rows(summary))
    for summary in sorted(found, key=lambda summary: str(summary["node"])):
        for number, (step, time) in enumerate(rows(summary)):
            bar = "█" * max(1, round(24 * time / longest)) if time else ""
            table.add_row(summary["node"] if number == 0 else "", step, f"{time:.3f}", bar)
    console.print(table)


def rows(summary: Dict[str, Any]) -> list[tuple[str, float]]:
    """Steps of one node with their times in ms: of the prolog, a row for each rank, the epilog."""
    times = summary["milliseconds"]
    before = [(step, times[step]) for step in STEPS if step in times]
    return [*before, *joins(summary["joins"]), ("epilog", times["epilog"])]


def joins(lines: List[Dict[str, Any]]) -> list[tuple[str, float]]:
    """Each rank's median over the steps that it was in; the script counts as rank 0 of a step."""
    ranks: Dict[int, List[float]] = {}
    for line in lines:
        ranks.setdefault(int(line["rank"]), []).append(line["us"] / 1000)
    return [
        (
            f"join, rank {rank}" + (f" (of {len(times)} steps)" if len(times) > 1 else ""),
            median(times),
        )
        for rank, times in sorted(ranks.items())
    ]
