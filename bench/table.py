"""Puts the tables of a run into docs/performance.md, between its two marks.

.venv/bin/python -m bench.table [bench/reference.json [docs/performance.md]]
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, Iterable, List

from bench.report import number

DEFAULTS = ("bench/reference.json", "docs/performance.md")
BEGIN, END = "<!-- bench/table.py: begin -->", "<!-- bench/table.py: end -->"
SHOWN = (
    *("enter", "srun", "filter", "mpi", "stream", "metadata", "files", "prolog", "pull"),
    "pull-large",
)
# Rows that explain others; the text of the page sums them up.
DETAILS = ("within: ", "import ", "of ", "build: ", "look ", "plan", "settings, ", "write ")


def main() -> None:
    """Read the run, replace what is between the marks."""
    source, target = [*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]]
    with open(source, encoding="utf-8") as file:
        run = json.load(file)
    with open(target, encoding="utf-8") as file:
        before, _, rest = file.read().partition(BEGIN)
    after = rest.partition(END)[2]
    with open(target, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n{tables(run)}\n{END}{after}")


def tables(run: Dict[str, Any]) -> str:
    """The goals, then what was compared with what."""
    parts = [[machine(run)], table(("goal", "measured", "limit", ""), goals(run))]
    for name in (name for name in SHOWN if name in run["results"]):
        result = run["results"][name]
        head = (f"**{name}**: {result['title']}", "median", "10 %", "90 %", "ratio")
        parts.append(table(head, rows(result)))
    return "\n\n".join("\n".join(part) for part in parts)


def machine(run: Dict[str, Any]) -> str:
    """What was measured, on what, and how busy that was."""
    found = run["machine"]
    return (
        f"{found['processors']} processors {found['processor']}, {found['memory_gib']} GiB, "
        f"{found['system']}, Linux {found['kernel']}, Python {found['python']}; "
        f"{run['time'][:10]}, commit {run['commit']}, load {found['load'][0]} at the end"
    )


def goals(run: Dict[str, Any]) -> Iterable[List[str]]:
    """One row a goal."""
    for name, result in run["results"].items():
        for goal in result["goals"]:
            sign, unit = "≥" if goal["at_least"] else "≤", f" {goal['unit']}".rstrip()
            met = "met" if goal["met"] else "**missed**"
            yield [
                f"{name}: {goal['what']}",
                f"{number(goal['value'])}{unit}",
                f"{sign} {goal['limit']:g}{unit}",
                met,
            ]


def rows(result: Dict[str, Any]) -> Iterable[List[str]]:
    """One row for each thing measured."""
    for row in result["rows"]:
        if row["what"].startswith(DETAILS):
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        numbers = [number(row[key]) for key in ("p10", "p90")]
        yield [row["what"], f"{number(row['median'])} {row['unit']}", *numbers, ratio]


def table(head: Iterable[str], body: Iterable[List[str]]) -> List[str]:
    """Lines of a Markdown table."""
    lines = [list(head), *body]
    lines.insert(1, ["---", *("--:" for _ in lines[0][1:])])
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
