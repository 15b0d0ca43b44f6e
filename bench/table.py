"""The tables of docs/performance.md, from a run's JSON: bench/table.py bench/reference.json."""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, Iterable, List

# Rows that explain others; the text of the page sums them up.
DETAILS = ("within: ", "import ", "of ", "build: ", "look ", "plan", "settings, ", "write ")


def main() -> None:
    """Print Markdown."""
    with open(sys.argv[1], encoding="utf-8") as file:
        run = json.load(file)
    print(machine(run) + "\n")
    print("\n".join(table(("goal", "measured", "limit", ""), goals(run))))
    for name, result in run["results"].items():
        head = (f"{name}: {result['title']}", "median", "10 %", "90 %", "ratio")
        print("\n" + "\n".join(table(head, rows(result))))


def machine(run: Dict[str, Any]) -> str:
    """What was measured, on what, and how busy that was."""
    found = run["machine"]
    return (
        f"{found['processors']} processors {found['processor']}, {found['memory_gib']} GiB, "
        f"{found['system']}, Linux {found['kernel']}, Python {found['python']}; {run['time'][:10]}, "
        f"commit {run['commit']}, load {found['load'][0]} at the end"
    )


def goals(run: Dict[str, Any]) -> Iterable[List[str]]:
    """One row a goal."""
    for name, result in run["results"].items():
        for goal in result["goals"]:
            sign, unit = "≥" if goal["at_least"] else "≤", f" {goal['unit']}".rstrip()
            met = "met" if goal["met"] else "**missed**"
            yield [
                f"{name}: {goal['what']}",
                f"{goal['value']:.3g}{unit}",
                f"{sign} {goal['limit']:g}{unit}",
                met,
            ]


def rows(result: Dict[str, Any]) -> Iterable[List[str]]:
    """One row for each thing measured."""
    for row in result["rows"]:
        if row["what"].startswith(DETAILS):
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        numbers = [f"{row[key]:.3g}" for key in ("p10", "p90")]
        yield [row["what"], f"{row['median']:.3g} {row['unit']}", *numbers, ratio]


def table(head: Iterable[str], body: Iterable[List[str]]) -> Iterable[str]:
    """Lines of a Markdown table."""
    lines = [list(head), *body]
    lines.insert(1, ["---", *("--:" for _ in lines[0][1:])])
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
