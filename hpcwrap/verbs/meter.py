"""A meter: one bar on a terminal for work that reads or writes much, nothing elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Callable, Iterator

from hpcwrap.human import format_size

OnBytes = Callable[[str, int, int], None]
"""Is told what is worked on, how many bytes of it are done, and of how many; 0: not known."""


@contextmanager
def meter(*, quiet: bool = False) -> Iterator[OnBytes]:
    """Show progress on stderr while the with block runs."""
    if quiet or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        row = progress.add_task("", total=None, amount="")

        def report(what: str, done: int, total: int) -> None:
            amount = format_size(done) + (f" of {format_size(total)}" if total else "")
            progress.update(
                row, description=what, completed=done, total=total or None, amount=amount
            )

        yield report


def _nothing(what: str, done: int, total: int) -> None:
    del what, done, total
