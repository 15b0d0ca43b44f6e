"""Jobs and nodes of Slurm: by pyslurm where one of this release is installed, else as JSON.

squeue and sinfo write JSON since 21.08 by their plugin serializer/json.  From 24.05 on numbers are
``{"number": 3, "set": true}`` and states are lists.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from types import ModuleType
from typing import Any, Dict, FrozenSet, Iterable, List, Optional

from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
from hpcwrap.schedulers import slurm, slurm_hosts
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
)

STATES = {
    "PENDING": WAITING,
    "RUNNING": RUNNING,
    "CONFIGURING": RUNNING,
    "SUSPENDED": HELD,
    "COMPLETING": ENDING,
    "STOPPED": HELD,
}
"""Job states of squeue(1); those of jobs that have ended are not among them."""

HOLDS = ("JobHeldUser", "JobHeldAdmin")
Document = Dict[str, Any]


def is_here(settings: Settings) -> bool:
    """There are squeue and a slurm.conf, slurmd's own copy included (slurm.conf(5), configless)."""
    files = (
        os.environ.get("SLURM_CONF", ""),
        os.path.join(settings.slurm_configuration_directory, "slurm.conf"),
        "/run/slurm/conf/slurm.conf",
    )
    there = any(map(os.path.exists, files))
    return there and find_command("squeue", settings.slurm_commands) is not None


def read_jobs(settings: Settings) -> List[JobState]:
    """All jobs that have not ended."""
    pyslurm = load_pyslurm()
    found = pyslurm.job().get().values() if pyslurm else read_json("squeue", "jobs", settings)
    return [state for each in found for state in [make_job(each)] if state]


def read_ids(settings: Settings) -> FrozenSet[str]:
    """Ids of all jobs that have not ended, as prologs have them: an array's elements have each one.

    Without --states squeue(1) tells of those that wait, run, are suspended or completing.
    """
    text = ask("squeue", ["--noheader", "--all", "--format=%A"], settings.slurm_commands)
    return frozenset(text.decode().split())


def find_ids(word: str, settings: Settings) -> List[str]:
    """Numbers of what users call 42_7, an array's element, or 42+1.  Raises HpcwrapError."""
    text = ask("scontrol", ["--oneliner", "show", "job", word], settings.slurm_commands)
    return re.findall(r"^JobId=(\d+)", text.decode("utf-8", "replace"), re.MULTILINE)


def read_nodes(settings: Settings) -> List[NodeState]:
    """All nodes."""
    pyslurm = load_pyslurm()
    found = pyslurm.node().get().values() if pyslurm else read_json("sinfo", "nodes", settings)
    nodes = {state.name: state for each in found for state in make_nodes(each)}
    return list(nodes.values())


def load_pyslurm() -> Optional[ModuleType]:
    """pyslurm, where it can speak to the Slurm that is here, with the calls that we know.

    One built for another release does not find its library, and raises ImportError.
    """
    try:
        pyslurm = importlib.import_module("pyslurm")
    except ImportError:
        return None
    return pyslurm if hasattr(pyslurm, "job") and hasattr(pyslurm, "node") else None


def read_json(command: str, key: str, settings: Settings) -> List[Document]:
    """The list of that key.  Raises SiteError."""
    text = ask(
        command, ["--json", *(["--all"] if command == "squeue" else [])], settings.slurm_commands
    )
    try:
        document = json.loads(text)
        # sinfo calls the list "nodes" in 22.05, and "sinfo" since 23.02.
        found: List[Document] = document[command if command in document else key]
    except (ValueError, KeyError, TypeError) as error:
        raise SiteError(f"cannot read what {command} --json says: {error}") from error
    return found


def make_job(job: Document) -> Optional[JobState]:
    """A job in our words; None when it has ended."""
    words = as_list(job["job_state"])
    state = STATES.get(words[0])
    if state is None:
        return None
    if state == WAITING and job.get("state_reason") in HOLDS:
        state = HELD
    # An array that still waits is one entry, whose element has no number.
    number = as_number(job.get("array_job_id"))
    element = as_number(job.get("array_task_id"), -1)
    began = as_number(job["start_time"]) if state != WAITING else 0
    return JobState(
        id=f"{number}_{element}" if number and element >= 0 else str(job["job_id"]),
        user=user_of(job),
        state=state,
        container=container_of(job),
        queue=job.get("partition") or "",
        nodes=slurm_hosts.expand(job.get("nodes") or ""),
        since=float(began or as_number(job["submit_time"])),
        name=job.get("name") or "",
    )


def user_of(job: Document) -> str:
    """The user's name; pyslurm has the number only."""
    import pwd

    if job.get("user_name"):
        return str(job["user_name"])
    try:
        return pwd.getpwuid(int(job["user_id"])).pw_name
    except KeyError:
        return str(job["user_id"])


def container_of(job: Document) -> str:
    """What submit/slurm.lua has noted for accounting."""
    return named(slurm.comment_request(job.get("admin_comment") or ""))


def make_nodes(node: Document) -> Iterable[NodeState]:
    """The node of an entry; sinfo of 23.02 and later has an entry for nodes that are alike."""
    names = node.get("nodes", {}).get("nodes") if "node" in node else None
    states = node["node"]["state"] if names else node["state"]
    reason = node.get("reason") or ""
    text = reason.get("description", "") if isinstance(reason, dict) else reason
    words = [word.upper() for each in as_list(states) for word in str(each).split("+")]
    words += [word.upper() for word in node.get("state_flags") or []]
    for name in names or [node["name"]]:
        yield NodeState(name, sort(words), "+".join(words).lower(), str(text))


def sort(words: List[str]) -> str:
    """The state of a node with these words of sinfo(1)."""
    if any(word.strip("*") in ("DOWN", "UNKNOWN", "NOT_RESPONDING", "FAIL") for word in words):
        return DOWN
    return DRAINED if any("DRAIN" in word for word in words) else UP


def as_list(value: Any) -> List[str]:
    """One state or several."""
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def as_number(value: Any, otherwise: int = 0) -> int:
    """A number as any release writes it; `otherwise` where it says none."""
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") else None
    return otherwise if value is None else int(value)
