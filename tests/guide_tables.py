"""Tables of the guides that are made from what tests try, each between two marks of its own."""

from __future__ import annotations

from typing import List, Sequence

END = "<!-- to here -->\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table in Markdown."""
    return [line(headings), line(["---"] * len(headings)), *map(line, rows)]


def line(cells: Sequence[str]) -> str:
    """A row."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def rewritten(text: str, maker: str, made: str) -> str:
    """A guide's text with what its `maker` has made now, between the marks that name the maker."""
    begin = f"<!-- from here on made by {maker} -->\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{made}\n{END}{after}"
