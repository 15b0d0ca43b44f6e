"""The picture of a pull on a terminal, drawn anew ten times a second at most.

    download       ━━━━━━━━━━━━━━━━━━━━──────────────────   103 of 199 MB   214 MB/s
      a525456cac2f ━━━━━━━━━━━━━━━━━─────────────────────    58 of 127 MB
      e29919fb9cfd ━━━━━━━━━━━━━━━━━━━━━━━━──────────────     45 of 72 MB
      1 layer here, 3 to come

Layers have a line while they come in; those that are whole, or have not begun, are only counted.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Deque, Dict, List, Optional, Tuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hpcwrap.human import UNITS, format_size
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.worker import Progress, Report
from hpcwrap.verbs.pullview import Silence, count, sentence

DRAW_EVERY = 0.1
RATE_OVER = 2.0
"""Seconds over which a rate is the mean: less jumps about, more tells of the past."""

MOST_LAYERS = 8
WIDEST = 100
RATES_FROM, AMOUNTS_FROM = 64, 50
"""Columns that a terminal has before there is room for rates, and for amounts beside per cent."""

RATE, AMOUNT, PERCENT = 11, 17, 6
NAME = 14
LINES, ASCII = "━─", "#."
"""What a bar is made of: done, and to be done; they differ without colours, too."""

BARS = ("download", "read", "convert")
NAMES = {"read": "read", "convert": "squashfs"}


class Bar:
    """How far one thing is, and how fast it goes."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self._seen: Deque[Tuple[float, int]] = deque()

    def update(self, done: int, total: int, now: float) -> None:
        """Take a look; now: a time in s."""
        self.done, self.total = done, total
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_OVER:
            self._seen.popleft()

    @property
    def whole(self) -> bool:
        """Whether it has come to its end."""
        return self.done >= self.total

    def rate(self) -> str:
        """``214 MB/s``, or "" where nothing moves or too little was seen."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        if self.whole or last <= first or ended - began < DRAW_EVERY:
            return ""
        return f"{format_size((last - first) / (ended - began))}/s"

    def amount(self) -> str:
        """``58 of 127 MB``."""
        done, total = format_size(self.done), format_size(self.total)
        if self.whole:
            return total
        unit = total.split()[1]
        if unit in UNITS and done.endswith(f" {unit}"):
            done = done.split()[0]
        return f"{done} of {total}"

    def percent(self) -> str:
        """``51 %``."""
        return f"{100 * self.done // self.total} %" if self.total else ""


class Picture:
    """What there is to see, without a terminal: bars, and a sentence where no bar says it."""

    def __init__(self, marks: str = LINES) -> None:
        self.marks = marks
        self.bars: Dict[str, Bar] = {}
        self.layers: Dict[str, Bar] = {}
        self.words = ""
        self.notice = ""

    def update(self, progress: Progress, now: float) -> None:
        """Take in what was reported."""
        stage = progress.stage
        if stage == "notice":
            self.notice = progress.item
        elif stage == "download" and "read" in self.bars:
            pass  # a file's layers, which are here
        elif stage == "download":
            self.layers.setdefault(progress.item, Bar()).update(progress.done, progress.total, now)
            whole = self.bars.setdefault(stage, Bar())
            whole.update(
                sum(bar.done for bar in self.layers.values()),
                sum(bar.total for bar in self.layers.values()),
                now,
            )
        elif stage in BARS:
            self.bars.setdefault(stage, Bar()).update(progress.done, progress.total, now)
        self.words = self._words(progress)

    def draw(self, width: int) -> RenderableType:
        """The picture for a terminal of so many columns."""
        width = min(width - 1, WIDEST)
        lines = []
        for stage, bar in self.bars.items():
            lines.append(self._line(NAMES.get(stage, stage), bar, width))
            if stage == "download" and not bar.whole and len(self.layers) > 1:
                lines += self._draw_layers(width)
        lines += [Text(text, style="dim") for text in (self.words, self.notice) if text]
        return Group(*lines)

    def _draw_layers(self, width: int) -> List[Text]:
        alive = [(name, bar) for name, bar in self.layers.items() if bar.done and not bar.whole]
        lines = [
            self._line(f"  {hex_digits(digest)[:12]}", bar, width, style="dim")
            for digest, bar in alive[:MOST_LAYERS]
        ]
        here = sum(bar.whole for bar in self.layers.values())
        to_come = len(self.layers) - here - len(lines)
        words = [f"{count(here, 'layer')} here"] if here else []
        words += [f"{to_come} to come"] if to_come else []
        return [*lines, Text("  " + ", ".join(words), style="dim")]

    def _line(self, name: str, bar: Bar, width: int, style: str = "") -> Text:
        """A name, a bar and numbers, as many as there is room for; what has a style has no rate."""
        numbers = AMOUNT if width >= AMOUNTS_FROM else PERCENT
        rate = RATE if width >= RATES_FROM else 0
        text = bar.amount() if numbers == AMOUNT else bar.percent()
        line = Text(f"{name:{NAME}} ", style=style)
        line.append(_bar(bar, max(4, width - NAME - 1 - numbers - rate), self.marks))
        line.append(f"{text:>{numbers}}")
        if rate:
            line.append(f"{'' if style else bar.rate():>{rate}}", style="dim")
        return line

    def _words(self, progress: Progress) -> str:
        if progress.stage in ("wait", "resolve"):
            return sentence(progress, {})
        coming = "download" in self.bars and not self.bars["download"].whole
        if progress.stage == "index" and not coming:
            return f"reading headers: {progress.done:,}"
        # mksquashfs goes on for a while after the last byte went in, and then comes the disk.
        done = progress.stage == "convert" and progress.done >= progress.total
        return "writing the end" if done else ""


def _bar(bar: Bar, width: int, marks: str) -> Text:
    full = width if bar.whole else width * bar.done // max(bar.total, 1)
    text = Text(marks[0] * full, style="green" if bar.whole else "cyan")
    return text.append(marks[1] * (width - full), style="bright_black")


def show(sentence: str, details: str) -> None:
    """What came of it, on the terminal at stdout."""
    console = Console(highlight=False, soft_wrap=True)
    mark = "✓ " if console.encoding.startswith("utf") else ""
    console.print(Text.assemble((mark, "green"), (sentence, "bold")))
    console.print(Text(f"  {details}", style="dim"))


class Screen(Silence):
    """Draws the picture, and takes it away in the end: the result is a line on stdout."""

    def __init__(self, console: Optional[Console] = None) -> None:
        self.console = console or Console(stderr=True)
        self.picture = Picture(LINES if self.console.encoding.startswith("utf") else ASCII)
        # Without a thread that redraws: the pull forks, and threads do not survive that.
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self._stage = ""
        self._next = 0.0

    def __enter__(self) -> Report:
        self.live.start()
        return self.report

    def close(self) -> None:
        """Give the terminal back."""
        self.live.stop()

    def report(self, progress: Progress) -> None:
        """Take it in; draw if it is time, or if something new begins."""
        now = time.monotonic()
        self.picture.update(progress, now)
        if now < self._next and progress.stage == self._stage:
            return
        self._stage, self._next = progress.stage, now + DRAW_EVERY
        self.live.update(self.picture.draw(self.console.width), refresh=True)
