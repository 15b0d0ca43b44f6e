"""The progress of a pull for a person: bars on a terminal, a few lines in a log."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Dict, Optional, Set, Type

from hpcwrap import log
from hpcwrap.human import format_size
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.worker import Progress, Report

if TYPE_CHECKING:
    from rich import progress as bars

MANY = 12
"""Layers above which one bar shows them all."""


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Report:
        return self.report

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """Nothing is left to do."""

    def report(self, progress: Progress) -> None:
        """Take notice of progress."""


class Lines(Silence):
    """One line when a stage begins, for logs and pipes."""

    def __init__(self) -> None:
        self.told: Set[str] = set()
        self.layers: Dict[str, int] = {}

    def report(self, progress: Progress) -> None:
        """Tell of a stage when it begins; of the download when all its layers are known."""
        if progress.stage == "download" and progress.item not in self.layers:
            self.layers[progress.item] = progress.total
            return
        if progress.stage in self.told:
            return
        self.told.add(progress.stage)
        text = self._sentence(progress)
        if text:
            log.say(text)

    def _sentence(self, progress: Progress) -> str:
        if progress.stage == "wait":
            return f"waiting for another pull of {progress.item}"
        if progress.stage == "resolve":
            return f"asking the registry for {progress.item}"
        if progress.stage == "read":
            return f"reading {progress.item}"
        if progress.stage == "download":
            total = format_size(sum(self.layers.values()))
            layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
            return f"downloading {layers}, {total}"
        if progress.stage == "convert":
            return f"converting {format_size(progress.total)} to squashfs"
        return ""


class Screen(Silence):
    """Bars: one a layer while it comes in, then one for the conversion."""

    def __init__(self) -> None:
        # Importing rich costs 50 ms, which scripts that watch no screen do not pay.
        from rich import progress as bars
        from rich.console import Console

        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=40),
            bars.TextColumn("{task.fields[amount]}", justify="right"),
            bars.TextColumn("{task.fields[rate]}", justify="right", style="dim"),
            console=Console(stderr=True),
            # Without a thread that redraws: the pull forks, and threads do not survive that.
            auto_refresh=False,
            transient=True,
        )
        self.rows: Dict[str, bars.TaskID] = {}
        self.sizes: Dict[str, Progress] = {}

    def __enter__(self) -> Report:
        self.bars.start()
        return self.report

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """Take the bars away: the result is one line on stdout."""
        self.bars.stop()

    def report(self, progress: Progress) -> None:
        """Draw."""
        if progress.stage == "download":
            self._download(progress)
        elif progress.stage == "read":
            # How much a directory holds is known when all of it has been read.
            amount = "" if progress.total else format_size(progress.done)
            self._show("read", f"reading {progress.item}", progress.done, progress.total, amount)
        elif progress.stage == "index":
            self._show("index", "reading headers", 0, 0, f"{progress.done:,} entries")
        elif progress.stage == "convert":
            self._show("convert", "squashfs", progress.done, progress.total)
        elif progress.stage == "wait":
            self._show("wait", f"waiting for another pull of {progress.item}", 0, 0, " ")
        else:
            self._hide("wait")
            self._show("resolve", f"asking for {progress.item}", 0, 0, " ")
        self.bars.refresh()

    def _download(self, progress: Progress) -> None:
        self._hide("resolve")
        self.sizes[progress.item] = progress
        if len(self.sizes) <= MANY:
            name = f"layer {hex_digits(progress.item)[:12]}"
            self._show(progress.item, name, progress.done, progress.total)
            return
        for item in self.sizes:
            self._hide(item)
        done = sum(each.done for each in self.sizes.values())
        total = sum(each.total for each in self.sizes.values())
        self._show("download", f"{len(self.sizes)} layers", done, total)

    def _show(self, row: str, name: str, done: int, total: int, amount: str = "") -> None:
        amount = amount or f"{format_size(done)} of {format_size(total)}"
        known = total or None
        if row not in self.rows:
            self.rows[row] = self.bars.add_task(name, total=known, amount=amount, rate="")
        self.bars.update(
            self.rows[row],
            description=name,
            total=known,
            completed=done,
            amount=amount,
            rate=self._rate(row, done, total),
        )

    def _rate(self, row: str, done: int, total: int) -> str:
        task = next(task for task in self.bars.tasks if task.id == self.rows[row])
        if not task.speed or done >= total:
            return ""
        return f"{format_size(task.speed)}/s"

    def _hide(self, row: str) -> None:
        if row in self.rows:
            self.bars.remove_task(self.rows.pop(row))
