"""The tables of docs/schedulers.md, made from the drivers: `python tests/schedulers/table.py`.

It writes them anew between the file's marks; a test holds them in step.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Dict, List, Type

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

import guide_tables  # noqa: E402  (the path has to be set first)
from driver import FEATURES, Driver  # noqa: E402

GUIDE = REPOSITORY / "docs" / "schedulers.md"
TITLES = {
    "slurm": "Slurm",
    "gridengine": "Grid Engine",
    "htcondor": "HTCondor",
    "pbs": "PBS",
    "lsf": "LSF",
}


def drivers() -> Dict[str, Type[Driver]]:
    """The driver of each scheduler."""
    return {name: importlib.import_module(f"driver_{name}").DRIVER for name in TITLES}


def render() -> str:
    """Both tables, and the reasons."""
    found = drivers()
    named = [
        [TITLES[name], code(each.DIRECTIVE.format("NAME")), code(each.LINE.format("NAME"))]
        for name, each in found.items()
    ]
    reasons: List[str] = []
    cells = [
        [text, *(cell(name, each, feature, reasons) for name, each in found.items())]
        for feature, text in FEATURES.items()
    ]
    return "\n".join(
        [
            *guide_tables.table(["", "in the script", "on the command line"], named),
            "",
            *guide_tables.table(["", *TITLES.values()], cells),
            "",
            *(f"{number}. {reason}." for number, reason in enumerate(reasons, 1)),
            "",
        ]
    )


def cell(name: str, driver: Type[Driver], feature: str, reasons: List[str]) -> str:
    """`yes`, or the number of the reason why not."""
    reason = driver.CANNOT.get(feature)
    if reason is None:
        return "yes"
    reasons.append(f"{TITLES[name]}: {reason}")
    return f"no ({len(reasons)})"


def code(text: str) -> str:
    """Text as a user types it."""
    return f"`{text}`"


def rewritten(text: str) -> str:
    """The guide with the tables as they are now."""
    return guide_tables.rewritten(text, "tests/schedulers/table.py", render())


if __name__ == "__main__":
    GUIDE.write_text(rewritten(GUIDE.read_text()))
