"""Epilog: root drops a job's container on this node.

The kernel frees overlay, loop device and image when the last process has left the namespaces;
what is left to do is to drop their pins, and to keep how long things took.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Dict, Optional

from hpcwrap import ended, log, owners, paths, record, schedulers, snapshot
from hpcwrap.config import Settings
from hpcwrap.container import build
from hpcwrap.errors import HpcwrapError
from hpcwrap.image import lease
from hpcwrap.image.store import Store

if TYPE_CHECKING:
    from hpcwrap.container.limits import Usage


def epilog(job_id: str) -> Optional[Dict[str, Any]]:
    """Release a job's container; None when there was none.  May run twice, or after a crash.

    Does not wait for its turn where the job's owners are gone: whoever has it, prolog or sweep,
    ends the job.  Returns the summary of the job on this node as the log keeps it.
    """
    place = paths.JobPaths(job_id)
    if not os.path.isdir(place.directory):
        return None
    with owners.turn(place, wait=owners.alive(place)) as ours:
        return finish(place) if ours else None


def finish(place: paths.JobPaths) -> Optional[Dict[str, Any]]:
    """Release a job in its turn (`owners.turn`); the summary."""
    start = time.monotonic()
    made = read_record(place)
    summary = summarise(place, made) if made else None
    usage = drop(place)
    if summary is not None and usage is not None:
        summary.update(oom_kills=usage.oom_kills, memory_peak=usage.peak, oom=usage.sentence())
        summary.update(pids_refused=usage.refused, pids=usage.pids_sentence())
        summary["lost_limits"] = usage.warning()
    if summary is not None:
        summary["milliseconds"]["epilog"] = round((time.monotonic() - start) * 1e3, 2)
    return summary


def drop(place: paths.JobPaths) -> Optional[Usage]:
    """End a job's processes, drop its container, then what keeps the image, then the record.

    Returns what its cgroup counted, None where the scheduler has made that.
    """
    usage = end_processes(place)
    build.release(place)
    job_id = os.path.basename(place.directory)
    for held in record.read_leases(place):
        lease.drop(Store(held.store), held.digest, held.node, job_id)
    record.remove(place)
    return usage


def end_processes(place: paths.JobPaths) -> Optional[Usage]:
    """Kill what is left in the job's own cgroup; does nothing where it has none."""
    if not os.path.exists(place.cgroups):
        return None
    from hpcwrap.container import limits

    return limits.release(place)


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
    """Keep a job's summary: in the site's log of jobs, on this node for a while, in syslog."""
    for step in (append, remember):
        try:
            step(summary, snapshot.load_settings())
        except (HpcwrapError, OSError) as error:
            log.warn(f"cannot keep the times of job {summary['job']}: {error}")
    report(summary)


def append(summary: Dict[str, Any], settings: Settings) -> None:
    """Append the summary to the site's log of jobs, one JSON document a line.  Raises OSError."""
    os.makedirs(os.path.dirname(settings.log), mode=0o755, exist_ok=True)
    line = {key: value for key, value in summary.items() if key not in ended.DETAILS}
    with open(settings.log, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def remember(summary: Dict[str, Any], settings: Settings) -> None:
    """Let `hpcwrap show` find the job on this node.  Raises OSError."""
    ended.remember(summary, settings.ended_jobs)


def report(summary: Dict[str, Any]) -> None:
    """Leave a line in syslog of all that entered, and one of the end.

    Ranks leave none themselves: they start by the thousand.
    """
    who = {key: summary[key] for key in ("job", "user", "node")}
    who["image"] = f"{summary['environment']}@{summary['digest']}"
    if summary["joins"]:
        slowest = max(join["us"] for join in summary["joins"]) / 1e3
        log.stage_line("enter", **who, ms=slowest, joins=len(summary["joins"]))
    keys = ("oom_kills", "pids_refused", "lost_limits")
    told = {key: summary[key] for key in keys if summary.get(key)}
    log.stage_line("epilog", **who, ms=summary["milliseconds"]["epilog"], **told)
