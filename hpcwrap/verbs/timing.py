"""Where the time of a job's containers went, as a table: `hpcwrap show timing`."""

from __future__ import annotations

from statistics import median
from typing import Any, Dict, List

STEPS = (
    *("jitter", "wait", "resolve", "download", "unpack", "convert", "publish", "copy"),
    "prolog",
)
"""In the order in which they happen; `wait` is for another node's pull of the same image, `copy`
for the node's cache, whoever of its jobs copied.
"""


def display(found: List[Dict[str, Any]]) -> None:
    """Print a table with a row for each node and step."""
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
    after = [("epilog", times["epilog"])] if "epilog" in times else []
    return [*before, *joins(summary["joins"]), *after]


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
