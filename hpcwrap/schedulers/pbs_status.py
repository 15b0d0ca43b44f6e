"""Jobs and nodes of PBS, by its own library."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Dict, List

from hpcwrap import paths
from hpcwrap.config import Settings
from hpcwrap.schedulers.pbs import RESOURCE, VARIABLE, read_installation
from hpcwrap.schedulers.states import (
    DOWN,
    DRAINED,
    ENDING,
    HELD,
    RUNNING,
    UP,
    WAITING,
    JobState,
    NodeState,
    named,
    unique,
)

if TYPE_CHECKING:
    from hpcwrap.schedulers.pbs_ifl import Server, Status

STATES = {
    "Q": WAITING,
    "W": WAITING,
    "T": WAITING,
    "H": HELD,
    "S": HELD,
    "U": HELD,
    "R": RUNNING,
    "E": ENDING,
}
"""job_state; B is an array that has begun, whose elements are jobs of their own."""


def is_here(_settings: Settings) -> bool:
    """There are a pbs.conf and what it names; Grid Engine has a qstat, too."""
    there = os.path.exists(os.environ.get("PBS_CONF_FILE", paths.PBS_CONF))
    return there and os.path.exists(f"{read_installation(os.environ).programs}/bin/pbsnodes")


def read_jobs(_settings: Settings) -> List[JobState]:
    """All jobs that have not ended."""
    with connect() as server:
        found = server.jobs(elements=True)
    return [make_job(each) for each in found if each.attributes["job_state"] in STATES]


def read_nodes(_settings: Settings) -> List[NodeState]:
    """All nodes."""
    with connect() as server:
        return [make_node(each) for each in server.nodes()]


def connect() -> Server:
    """The server of pbs.conf.  Raises SiteError."""
    from hpcwrap.schedulers import pbs_ifl

    return pbs_ifl.Server()


def make_job(job: Status) -> JobState:
    """A job in our words; its times are seconds since the epoch."""
    told = job.attributes
    hosts = [part.partition("/")[0] for part in told.get("exec_host", "").split("+")]
    return JobState(
        id=job.name,
        user=told["Job_Owner"].partition("@")[0],
        state=STATES[told["job_state"]],
        container=named(told.get(f"Resource_List.{RESOURCE}") or variable(told)),
        queue=told.get("queue", ""),
        nodes=unique(hosts),
        since=float(told.get("stime") or told["ctime"]),
        name=told.get("Job_Name", ""),
    )


def variable(told: Dict[str, str]) -> str:
    """What `qsub -v` named; the list has commas between its variables."""
    found = re.search(rf"(?:^|,){VARIABLE}=([^,]*)", told.get("Variable_List", ""))
    return found.group(1) if found else ""


def make_node(node: Status) -> NodeState:
    """A node in our words; `state` has several, between commas."""
    word = node.attributes["state"]
    state = DRAINED if "offline" in word.split(",") else UP
    if any(each.startswith(("down", "state-unknown", "stale")) for each in word.split(",")):
        state = DOWN
    return NodeState(node.name, state, word, node.attributes.get("comment", ""))
