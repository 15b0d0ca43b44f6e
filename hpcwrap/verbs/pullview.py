"""The progress of a pull for a person: a picture on a terminal, a few lines in a log."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import ContextManager, Dict, Optional, Set, TextIO, Type

from hpcwrap import log
from hpcwrap.human import format_size
from hpcwrap.image.worker import Progress, Report


def view(*, quiet: bool) -> ContextManager[Report]:
    """What shows the progress: a picture on a terminal that can move its cursor, lines elsewhere,
    or nothing.
    """
    if quiet:
        return Silence()
    if not can_draw(sys.stderr):
        return Lines()
    # Importing rich costs 50 ms, which scripts that watch no screen do not pay.
    from hpcwrap.verbs.pullscreen import Screen

    return Screen()


def can_draw(stream: TextIO) -> bool:
    """Whether this is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


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
        """End the view, however the pull ended."""
        self.close()

    def close(self) -> None:
        """Give back what the view holds: nothing."""

    def report(self, progress: Progress) -> None:
        """Take notice of progress."""


class Lines(Silence):
    """One line when a stage begins, for logs and pipes."""

    def __init__(self) -> None:
        self.told: Set[str] = set()
        self.layers: Dict[str, int] = {}

    def report(self, progress: Progress) -> None:
        """Tell of a stage when it begins; of the download when all its layers are known."""
        if progress.stage == "download" and "read" in self.told:
            return  # a file's layers, which are here
        if progress.stage == "download" and progress.item not in self.layers:
            self.layers[progress.item] = progress.total
            return
        # What a pull waits for may change; all else is told once.
        text = sentence(progress, self.layers)
        key = text if progress.stage in ("wait", "notice") else progress.stage
        if text and key not in self.told:
            self.told.add(key)
            log.say(text)


def sentence(progress: Progress, layers: Dict[str, int]) -> str:
    """What is being done, "" for what needs no words; layers: digest → bytes."""
    if progress.stage == "download":
        return f"downloading {count(len(layers), 'layer')}, {format_size(sum(layers.values()))}"
    if progress.stage == "convert":
        return f"converting {format_size(progress.total)} to squashfs"
    words = {
        "wait": f"waiting for {progress.item}",
        "resolve": f"asking the registry for {progress.item}",
        "read": f"reading {progress.item}",
        "notice": progress.item,
    }
    return words.get(progress.stage, "")


def count(number: int, what: str) -> str:
    """A number and its noun: ``1 layer``, ``20 layers``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
