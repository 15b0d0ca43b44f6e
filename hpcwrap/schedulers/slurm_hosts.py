"""Slurm's hostlist expressions (hostlist in slurm.conf(5)): many nodes in few words."""

from __future__ import annotations

import re
from typing import Iterator, List, Tuple

MOST = 1 << 17
"""More nodes than any machine has; a range that is larger is a mistake."""


def expand(expression: str) -> Tuple[str, ...]:
    """Write a hostlist out; what is not one gives nothing, for nothing depends on it.

    >>> expand("n[1-2,08-09],login")
    ('n1', 'n2', 'n08', 'n09', 'login')
    """
    names: List[str] = []
    for part in re.findall(r"(?:\[[^\]]*\]|[^,\[\]])+", expression):
        names += _expand_one(part)
        if len(names) > MOST:
            return ()
    return tuple(names)


def _expand_one(part: str) -> List[str]:
    """One name with any number of brackets: ``rack[0-1]n[1-4]``."""
    names = [""]
    for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
        ends = [plain] if plain else list(_numbers(ranges))
        if len(names) * len(ends) > MOST:
            return []
        names = [name + end for name in names for end in ends]
    return names


def _numbers(ranges: str) -> Iterator[str]:
    """Numbers of a bracket, as wide as the first of their range is written."""
    for each in ranges.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", each, re.ASCII)
        if not found:
            continue
        first, last = found.group(1), found.group(2) or found.group(1)
        if int(last) - int(first) <= MOST:
            yield from (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
