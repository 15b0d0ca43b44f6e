"""Sizes, times and durations as people read them."""

from __future__ import annotations

import time
from typing import Mapping, Optional

UNITS = ("B", "kB", "MB", "GB", "TB")
SIZE_UNITS = ("b", "k", "m", "g", "t")
AGES = ((86400 * 2, 86400, "days"), (3600 * 2, 3600, "hours"), (60 * 2, 60, "minutes"))
OLD = 86400 * 14


def format_size(size: float) -> str:
    """A size in bytes with three digits or so: ``227 MB``."""
    power = 0
    while size >= 999.5 and power < len(UNITS) - 1:
        size /= 1000
        power += 1
    digits = 1 if size < 9.95 and power else 0
    return f"{size:.{digits}f} {UNITS[power]}"


def format_binary(size: int) -> str:
    """A limit in bytes in the units in which people set it: ``2 GiB``, ``1.5 MiB``."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size} B"


def parse_size(text: str) -> int:
    """The bytes of a size as settings have it: ``50g``, ``512m``, ``0``; units are powers of 1024.

    Raises ValueError.
    """
    number, unit = text[:-1], text[-1:].lower()
    if unit in SIZE_UNITS:
        return _whole(number) << 10 * SIZE_UNITS.index(unit)
    return _whole(text)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def format_seconds(milliseconds: float) -> str:
    """A duration: ``3.4 s``, ``2 min 5 s``."""
    seconds = milliseconds / 1e3
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def format_stages(milliseconds: Mapping[str, float]) -> str:
    """Durations of stages: ``download 1.1 s, convert 1.7 s``; those below 50 ms are left out."""
    return ", ".join(
        f"{stage} {format_seconds(taken)}" for stage, taken in milliseconds.items() if taken >= 50
    )


def format_age(epoch: float, now: Optional[float] = None) -> str:
    """When something was: ``5 minutes ago``, a date when that is two weeks or more."""
    age = (time.time() if now is None else now) - epoch
    if age >= OLD:
        return time.strftime("%Y-%m-%d", time.localtime(epoch))
    for least, unit, name in AGES:
        if age >= least:
            return f"{age // unit:.0f} {name} ago"
    return "just now" if age < 60 else "a minute ago"
