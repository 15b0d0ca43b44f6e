"""Results as tables for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from typing import Any, Dict, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.model import Goal, Result
from bench.processes import REPOSITORY

HEADINGS = ("median", "10 %", "90 %", "unit", "ratio", "rounds")


def show(console: Console, name: str, result: Result) -> None:
    """Print one result: a table, its goals, its notes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = Text(f"{name}: {result.title}", style="bold")
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    for row in result.rows:
        ratio = result.ratio(row)
        table.add_row(
            Text(row.what),
            *(number(value) for value in (row.median, row.percentile(10), row.percentile(90))),
            row.unit,
            "" if ratio is None else f"{ratio:.3f}",
            str(len(row.samples)),
        )
    console.print(table)
    for goal in result.goals:
        console.print(goal_line(goal))
    for note in result.notes:
        console.print(Text(f"  {note}", style="dim"))
    console.print()


def number(value: float) -> str:
    """Three digits that mean something, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return (
        f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
    )


def goal_line(goal: Goal) -> Text:
    """One goal, in green or red."""
    sign = "≥" if goal.at_least else "≤"
    unit = f" {goal.unit}" if goal.unit else ""
    word = "met   " if goal.met else "missed"
    text = f"  {word}  {goal.what}: {number(goal.value)}{unit} (goal {sign} {goal.limit:g}{unit})"
    return Text(text, style="green" if goal.met else "red")


def document(results: Mapping[str, Result]) -> Dict[str, Any]:
    """All results, with what is needed to compare them with another run's."""
    return {
        "version": 1,
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "results": {name: result.document() for name, result in results.items()},
    }


def machine() -> Dict[str, Any]:
    """What the numbers depend on: processors, memory, kernel, distribution, and how busy it was."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": _after("/proc/cpuinfo", "model name"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def commit() -> str:
    """What was measured, as git calls it."""
    argv = ["git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(path: str, text: Mapping[str, Any]) -> None:
    """Write the document, a list of numbers a line; its directory is made if need be."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    lines = re.sub(
        r"\[\s+([-\d.,\s]+)\]",
        lambda numbers: f"[{' '.join(numbers.group(1).split())}]",
        json.dumps(text, indent=1, ensure_ascii=False),
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(lines + "\n")


def _after(path: str, key: str) -> str:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
