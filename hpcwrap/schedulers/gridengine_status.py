"""Jobs and nodes of Grid Engine, by qstat's XML (qstat(1), -xml)."""

from __future__ import annotations

import os
from typing import Dict, List
from xml.etree import ElementTree

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
    named,
    parse_time,
    unique,
)
from hpcwrap.textfile import read_text

CONTEXT = "hpcwrap"
"""The filter's note in a job's context."""

TIME = "%Y-%m-%dT%H:%M:%S"


def is_here(_settings: Settings) -> bool:
    """There are qhost (PBS has a qstat, too) and a cell, Debian's or the one of the variables."""
    return bool(read_master()) and find_command("qhost") is not None


def read_master() -> str:
    """The host of sge_qmaster, as the cell has it; empty without a cell (sge_conf(5))."""
    root = os.environ.get("SGE_ROOT", "/var/lib/gridengine")
    cell = os.environ.get("SGE_CELL", "default")
    return read_text(os.path.join(root, cell, "common", "act_qmaster")).strip()


def read_jobs(_settings: Settings) -> List[JobState]:
    """All jobs that have not ended; of each element of an array that runs, one."""
    entries = parse(["-u", "*", "-g", "t", "-xml"]).iter("job_list")
    containers = read_containers()
    found: Dict[str, JobState] = {}
    for entry in entries:
        job = make_job(entry, containers)
        # A parallel job has an entry for each of its hosts.
        earlier = found.get(job.id)
        found[job.id] = job._replace(nodes=unique((*earlier.nodes, *job.nodes))) if earlier else job
    return list(found.values())


def read_nodes(_settings: Settings) -> List[NodeState]:
    """All hosts: as bad as the worst of their queues."""
    found: Dict[str, NodeState] = {}
    order = (UP, DRAINED, DOWN)
    for entry in parse(["-f", "-explain", "aAcE", "-u", "*", "-xml"]).iter("Queue-List"):
        queue, _, host = text(entry, "name").partition("@")
        word = text(entry, "state")
        state = NodeState(host, sort(word), f"{queue} {word}" if word else "", reason(entry))
        worst = found.setdefault(host, state)
        if order.index(state.state) > order.index(worst.state):
            found[host] = state
    return list(found.values())


def sort(word: str) -> str:
    """The state of a queue with these letters of qstat(1): u unknown, E error, d disabled …"""
    if "u" in word:
        return DOWN
    return DRAINED if any(letter in word for letter in "EdDscCo") else UP


def make_job(entry: ElementTree.Element, containers: Dict[str, str]) -> JobState:
    """An entry of qstat in our words."""
    number, element = text(entry, "JB_job_number"), text(entry, "tasks")
    queue, _, host = text(entry, "queue_name").partition("@")
    began = text(entry, "JAT_start_time") or text(entry, "JB_submission_time")
    return JobState(
        id=f"{number}.{element}" if element else number,
        user=text(entry, "JB_owner"),
        state=state_of(text(entry, "state")),
        container=containers.get(number, ""),
        queue=queue,
        nodes=unique((host,)),
        since=parse_time(began, TIME),
        name=text(entry, "JB_name"),
    )


def state_of(letters: str) -> str:
    """A job's state by its letters."""
    if "d" in letters:
        return ENDING
    if any(letter in letters for letter in "hsSTE"):
        return HELD
    return WAITING if "q" in letters else RUNNING


def read_containers() -> Dict[str, str]:
    """The container of each job that has one, by number."""
    found = {}
    for job in parse(["-j", "*", "-xml"]).iter("element"):
        number = text(job, "JB_job_number")
        for note in job.iter("context_list"):
            if number and text(note, "VA_variable") == CONTEXT:
                found[number] = named(text(note, "VA_value"))
    return found


def parse(words: List[str]) -> ElementTree.Element:
    """What qstat says.  Raises SiteError."""
    try:
        return ElementTree.fromstring(ask("qstat", words))  # noqa: S314
    except ElementTree.ParseError as error:
        raise SiteError(f"cannot read what qstat says: {error}") from error


def reason(entry: ElementTree.Element) -> str:
    """Why a queue is in error or overloaded."""
    return text(entry, "message") or text(entry, "load-alarm-reason")


def text(entry: ElementTree.Element, name: str) -> str:
    """The text of one of an entry's own fields; empty when it has none."""
    return (entry.findtext(name) or "").strip()
