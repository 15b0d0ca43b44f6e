"""A job as its user names it, and the directories that it may have (`Job.id` of the adapters)."""

from __future__ import annotations

import os
import re
from typing import List, NamedTuple, Pattern

NUMBER = re.compile(r"([0-9]+)(?:[.\[]([0-9]+)\]?)?", re.ASCII)


class Named(NamedTuple):
    """Ids of directories that a job may have, and the pattern of all, for who can list them."""

    ids: List[str]
    pattern: Pattern[str]


def parse(word: str, more: List[str]) -> Named:
    """Read 42, 42.7, 12.server, 42[7] or a directory's own name; `more` are further ids.

    Slurm's have the number alone.
    """
    ids = [word, f"pbs-{word}"]
    patterns = [re.escape(word), rf"pbs-{re.escape(word)}(\..*)?"]
    parts = NUMBER.fullmatch(word)
    if parts:
        number, index = parts.group(1), parts.group(2) or "0"
        ids += [f"gridengine-{number}-{index}", f"lsf-{number}-{index}-u{os.getuid()}"]
        patterns += [f"gridengine-{number}-{index}", rf"lsf-{number}-{index}-u\d+"]
        patterns += [rf"htcondor-{number}\.{index}-.*"]
    ids += more
    return Named(ids, re.compile("|".join([*patterns, *map(re.escape, ids)])))


def listed(named: Named, directory: str, tail: str = "") -> List[str]:
    """Names in a directory that are the job's; users cannot list it, and try those it may have."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except PermissionError:
        return [f"{each}{tail}" for each in dict.fromkeys(named.ids)]
    return [each for each in names if named.pattern.fullmatch(each[: len(each) - len(tail)])]
