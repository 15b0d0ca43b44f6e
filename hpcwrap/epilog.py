"""Epilog: root drops a job's container on this node.

The kernel frees overlay, loop device and image when the last process has left the namespaces;
what is left to do is to drop their pins, and to keep how long things took.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, Optional

from hpcwrap import log, paths, record, schedulers, snapshot
from hpcwrap.container import build
from hpcwrap.errors import HpcwrapError
from hpcwrap.image import lease
from hpcwrap.image.store import Store


def epilog(job_id: str) -> Optional[Dict[str, Any]]:
    """Release a job's container; None when there was none.  May run twice, or after a crash.

    Returns the summary of the job on this node as the log keeps it.
    """
    start = time.monotonic()
    place = paths.JobPaths(job_id)
    if not os.path.isdir(place.directory):
        return None
    made = read_record(place)
    summary = summarise(place, made) if made else None
    drop(place, made)
    if summary is not None:
        summary["milliseconds"]["epilog"] = round((time.monotonic() - start) * 1e3, 2)
    return summary


def drop(place: paths.JobPaths, made: Optional[record.Record]) -> None:
    """Drop a job's container, then what its record says that keeps the image, then the record."""
    build.release(place)
    if made is not None:
        for root in made.stores:
            lease.drop(Store(root), made.digest, made.node, made.job)
    record.remove(place)


def main(scheduler: str) -> int:
    """Run as the scheduler's epilog; a log that cannot be written is no error."""
    try:
        job_id = schedulers.load(scheduler).read_job_id(os.environ)
        summary = epilog(job_id)
    except HpcwrapError as error:
        log.say(error.sentence())
        return error.exit_code
    if summary is not None:
        keep(summary)
    return 0


def read_record(place: paths.JobPaths) -> Optional[record.Record]:
    """The job's record; None when the prolog had failed or the record is broken."""
    try:
        return record.read_record(place)
    except HpcwrapError as error:
        log.say(error.sentence())
        return None


def summarise(place: paths.JobPaths, made: record.Record) -> Dict[str, Any]:
    """Record and joins as one document."""
    return {**made._asdict(), "joins": record.read_timing(place), "ended": round(time.time(), 3)}


def keep(summary: Dict[str, Any]) -> None:
    """Append the summary to the site's log of jobs, one JSON document a line."""
    try:
        path = snapshot.load_settings().log
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(summary) + "\n")
    except (HpcwrapError, OSError) as error:
        log.warn(f"cannot keep the times of job {summary['job']}: {error}")
    log.stage_line(
        "epilog",
        job=summary["job"],
        user=summary["user"],
        node=summary["node"],
        image=f"{summary['environment']}@{summary['digest']}",
        joins=len(summary["joins"]),
        ms=summary["milliseconds"]["epilog"],
    )
