"""Jobs and nodes of LSF, by bjobs and bhosts.

Fields of bjobs -o as JSON, which IBM's and volclava's both have; bhosts as a table, for volclava's
has nothing else.  LSF does not say which container a job has.
"""

from __future__ import annotations

import json
import re
import time
from typing import Dict, List

from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
from hpcwrap.run import CommandError
from hpcwrap.schedulers.states import (
    DOWN,
    DRAINED,
    HELD,
    RUNNING,
    UP,
    WAITING,
    JobState,
    NodeState,
    ask,
    find_command,
    parse_time,
    unique,
)

FIELDS = "jobid stat user queue exec_host submit_time start_time job_name"
STATES = {
    "PEND": WAITING,
    "WAIT": WAITING,
    "RUN": RUNNING,
    "PSUSP": HELD,
    "USUSP": HELD,
    "SSUSP": HELD,
    "UNKWN": RUNNING,
}
"""STAT of bjobs(1); DONE, EXIT and ZOMBI have ended."""

NO_JOBS, NONE_LEFT = 255, "No unfinished job found\n"
"""How bjobs ends without any job, and what it says, to stdout in some releases."""

DAY = 86400.0


def is_here(settings: Settings) -> bool:
    """There is a bjobs."""
    return find_command("bjobs", settings.lsf_commands) is not None


def read_jobs(settings: Settings) -> List[JobState]:
    """All jobs that have not ended."""
    try:
        text = ask("bjobs", ["-u", "all", "-json", "-o", FIELDS], settings.lsf_commands)
    except CommandError as error:
        if error.returncode == NO_JOBS and not error.stderr.strip(NONE_LEFT):
            return []
        raise
    try:
        found = json.loads(text)["RECORDS"]
    except (ValueError, KeyError) as error:
        raise SiteError(f"cannot read what bjobs says: {error}") from error
    return [make_job(each) for each in found if each.get("STAT") in STATES]


def read_nodes(settings: Settings) -> List[NodeState]:
    """All hosts that run jobs."""
    text = ask("bhosts", ["-w"], settings.lsf_commands).decode(errors="replace")
    rows = [line.split() for line in text.splitlines()[1:] if line.strip()]
    # A host that never runs jobs has no slots.
    return [NodeState(row[0], sort(row[1]), row[1]) for row in rows if row[3] != "0"]


def sort(word: str) -> str:
    """The state of a host by its STATUS of bhosts(1)."""
    if word in ("unavail", "unreach", "unlicensed", "closed_LIM"):
        return DOWN
    return DRAINED if word.startswith("closed_Adm") else UP


def make_job(job: Dict[str, str]) -> JobState:
    """A record of bjobs in our words."""
    index = re.search(r"\[(\d+)\]$", job["JOB_NAME"])
    hosts = [host.rpartition("*")[2] for host in job["EXEC_HOST"].split(":")]
    return JobState(
        id=f"{job['JOBID']}[{index.group(1)}]" if index else job["JOBID"],
        user=job["USER"],
        state=STATES[job["STAT"]],
        container="",
        queue=job["QUEUE"],
        nodes=unique([host for host in hosts if host != "-"]),
        since=since(job["START_TIME"]) or since(job["SUBMIT_TIME"]),
        name=job["JOB_NAME"],
    )


def since(text: str) -> float:
    """A time without its year: the last one that was; 0 for none."""
    year = time.localtime().tm_year
    for pattern in ("%Y %m/%d-%H:%M:%S", "%Y %b %d %H:%M", "%Y %b %d %H:%M:%S"):
        found = parse_time(f"{year} {text}", pattern)
        if found > time.time() + DAY:
            found = parse_time(f"{year - 1} {text}", pattern)
        if found:
            return found
    return 0.0
