"""What schedulers say of their jobs and nodes, in our words; a reader NAME_status.py for each.

Readers ask by the scheduler's own commands, with the rights of whoever calls, and only what can be
asked of a whole cluster at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from typing import List, NamedTuple, Optional, Protocol, Sequence, Tuple, cast

from hpcwrap import run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
from hpcwrap.request import NONE

READERS = ("slurm", "gridengine", "htcondor", "pbs", "lsf")

WAITING, HELD, RUNNING, ENDING = "waiting", "held", "running", "ending"
UP, DRAINED, DOWN = "up", "drained", "down"
PATIENCE = 30.0
"""Seconds for an answer."""

PASSED_ON = ("SLURM_CONF", "SGE_", "PBS_", "LSF_", "LSB_", "CONDOR_CONFIG", "_CONDOR_")
"""Beginnings of the variables by which the commands find their scheduler."""


class JobState(NamedTuple):
    """A job that has not ended.

    `state` is waiting, held, running or ending.  `container` is NAME@DIGEST or NAME, empty for none
    and where the scheduler does not tell.  `since` is when it began to run, else when it was
    submitted, in seconds since the epoch; 0 when unknown.
    """

    id: str
    user: str
    state: str
    container: str
    queue: str
    nodes: Tuple[str, ...]
    since: float
    name: str


class NodeState(NamedTuple):
    """A node: `state` is up, drained (takes no new jobs) or down; `word` is the scheduler's own."""

    name: str
    state: str
    word: str
    reason: str = ""


class Reader(Protocol):
    """What NAME_status.py has."""

    def is_here(self, settings: Settings) -> bool:
        """Whether the scheduler's commands are on this host."""

    def read_jobs(self, settings: Settings) -> List[JobState]:
        """Read all jobs that have not ended.  Raises HpcwrapError."""

    def read_nodes(self, settings: Settings) -> List[NodeState]:
        """Read all nodes.  Raises HpcwrapError."""


def load(name: str) -> Reader:
    """Import the reader of a scheduler."""
    return cast(Reader, importlib.import_module(f"hpcwrap.schedulers.{name}_status"))


def find(settings: Settings, wanted: Optional[str] = None) -> Tuple[str, Reader]:
    """Find the scheduler of this host, or the wanted one, and its reader.

    Raises SiteError when none is here.
    """
    for name in [wanted] if wanted else READERS:
        reader = load(name)
        if reader.is_here(settings):
            return name, reader
    raise SiteError(
        f"cannot find the commands of {wanted or 'any scheduler'} on this host",
        "run this on a submit host",
    )


def find_command(name: str, *directories: str) -> Optional[str]:
    """Full path of a scheduler's command: in these directories, else where the caller looks."""
    places = [*directories, *run.PATH.split(":"), *os.environ.get("PATH", "").split(":")]
    for place in filter(os.path.isabs, places):
        path = os.path.join(place, name)
        if os.access(path, os.X_OK):
            return path
    return None


def ask(name: str, words: Sequence[str], *directories: str) -> bytes:
    """Run one of a scheduler's commands; its output.  Raises HpcwrapError."""
    command = find_command(name, *directories)
    if command is None:
        raise SiteError(f"cannot find the command {name}", "run this on a submit host")
    passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
    return run.output([command, *words], env=run.base_environment(**passed), timeout=PATIENCE)


def parse_time(text: str, pattern: str) -> float:
    """A local time as seconds since the epoch; 0 when it is none."""
    try:
        return time.mktime(time.strptime(text, pattern))
    except (ValueError, OverflowError):
        return 0.0


def named(container: Optional[str]) -> str:
    """The container that was asked for; empty for `none` and for nothing at all."""
    return "" if container in (None, NONE) else str(container)


def unique(names: Sequence[str]) -> Tuple[str, ...]:
    """Names without those that come again, and without empty ones."""
    return tuple(dict.fromkeys(filter(None, names)))
