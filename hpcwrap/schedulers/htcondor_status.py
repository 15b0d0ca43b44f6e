"""Jobs and nodes of HTCondor, by its commands' JSON."""

from __future__ import annotations

import json
from typing import Any, Dict, List

from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
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
    ask,
    find_command,
    unique,
)

STATES = {1: WAITING, 2: RUNNING, 3: ENDING, 5: HELD, 6: ENDING, 7: HELD}
"""JobStatus; 4 is completed."""

JOB = (
    *("ClusterId", "ProcId", "Owner", "JobStatus", "RemoteHost", "RemoteHosts", "QDate"),
    *("JobCurrentStartDate", "Container", "ContainerImage", "DockerImage", "Cmd", "JobBatchName"),
)
NODE = ("Machine", "State", "Activity", "SlotType", "DrainReason", "OfflineReason")


def is_here(_settings: Settings) -> bool:
    """condor_q says so."""
    return find_command("condor_q") is not None


def read_jobs(_settings: Settings) -> List[JobState]:
    """All jobs of this host's queue that have not ended."""
    found = read("condor_q", ["-allusers"], JOB)
    return [make_job(each) for each in found if each["JobStatus"] in STATES]


def read_nodes(_settings: Settings) -> List[NodeState]:
    """All hosts that the collector knows; one that is silent it does not know."""
    found = read("condor_status", [], NODE)
    return list(
        {
            each["Machine"]: make_node(each) for each in found if each.get("SlotType") != "Dynamic"
        }.values()
    )


def make_job(job: Dict[str, Any]) -> JobState:
    """An advertisement of a job in our words."""
    state = STATES[job["JobStatus"]]
    hosts = str(job.get("RemoteHosts") or job.get("RemoteHost") or "").split(",")
    nodes = unique([host.rpartition("@")[2].partition(".")[0] for host in hosts])
    began = job.get("JobCurrentStartDate") if state == RUNNING else None
    images = (job.get(name) for name in ("Container", "ContainerImage", "DockerImage"))
    return JobState(
        id=f"{job['ClusterId']}.{job['ProcId']}",
        user=str(job["Owner"]),
        state=state,
        container=next((str(image) for image in images if image), ""),
        queue="",
        nodes=nodes if state == RUNNING else (),
        since=float(began or job["QDate"]),
        name=str(job.get("JobBatchName") or job.get("Cmd", "").rpartition("/")[2]),
    )


def make_node(node: Dict[str, Any]) -> NodeState:
    """An advertisement of a machine in our words."""
    word = str(node.get("State", ""))
    reason = str(node.get("DrainReason") or node.get("OfflineReason") or "")
    state = {"Drained": DRAINED, "Owner": DRAINED, "Delete": DOWN}.get(word, UP)
    return NodeState(node["Machine"].partition(".")[0], state, word.lower(), reason)


def read(command: str, words: List[str], names: tuple[str, ...]) -> List[Dict[str, Any]]:
    """A command's list; it prints nothing at all for an empty one.  Raises SiteError."""
    text = ask(command, [*words, "-json", "-attributes", ",".join(names)]).strip()
    try:
        found: List[Dict[str, Any]] = json.loads(text or b"[]")
    except ValueError as error:
        raise SiteError(f"cannot read what {command} says: {error}") from error
    return found
