"""Tables for people: rich on a terminal, aligned columns elsewhere."""

from __future__ import annotations

import sys
from typing import List, Sequence

Rows = Sequence[Sequence[str]]


def print_table(headings: Sequence[str], rows: Rows) -> None:
    """Print rows under their headings to stdout."""
    if sys.stdout.isatty():
        _print_rich(headings, rows)
    else:
        print("\n".join(format_plain(headings, rows)))


def format_plain(headings: Sequence[str], rows: Rows) -> List[str]:
    """Lines of columns, two spaces apart; the headings in capitals, as grep and awk like it."""
    lines = [[heading.upper() for heading in headings], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    ]


def _print_rich(headings: Sequence[str], rows: Rows) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        # Text, not str: rich would take [gpu] in a value for markup.
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)
