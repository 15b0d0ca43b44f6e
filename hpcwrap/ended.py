"""Ended jobs: what a node remembers of the last of them, for `hpcwrap show`.

    /run/hpcwrap/ended/<id>.json     the record, the joins of ranks, how it ended: root's and the
                                     user's to read

Gone after a reboot; the site's log of jobs, which many nodes may share, has the lines that stay.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any, Dict, List

from hpcwrap import paths, record

SLACK = 4
"""A fourth more than the site wants may lie there: few epilogs look for the oldest then."""

DETAILS = ("plan", "variables")
"""What is remembered here, and left out of the log: kilobytes for each job."""


def remember(summary: Dict[str, Any], most: int) -> None:
    """Keep a job's summary, and forget the oldest where there are too many.  Raises OSError."""
    if most < 1:
        return
    os.makedirs(paths.ENDED, mode=0o711, exist_ok=True)
    content = json.dumps(summary).encode() + b"\n"
    record.publish(path_of(summary["job"]), content, 0o600, reader=summary["uid"])
    names = os.listdir(paths.ENDED)
    if len(names) > most + most // SLACK:
        forget([os.path.join(paths.ENDED, name) for name in names], most)


def path_of(job_id: str) -> str:
    """Where a job is remembered."""
    return os.path.join(paths.ENDED, f"{job_id}.json")


def forget(files: List[str], most: int) -> None:
    """Remove all but the youngest; another epilog may do the same."""
    ages = []
    for path in files:
        with suppress(FileNotFoundError):
            ages.append((os.stat(path).st_mtime_ns, path))
    for _, path in sorted(ages)[: max(0, len(ages) - most)]:
        with suppress(FileNotFoundError):
            os.unlink(path)
