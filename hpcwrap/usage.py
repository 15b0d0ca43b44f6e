"""What container jobs of this node use now: their processes, found by the namespace they are in.

Root sees all jobs, by the pins in their directories.  Others see their own processes, and which
job and container those are by the variables that they have.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Type

from hpcwrap import paths, record
from hpcwrap.errors import HpcwrapError
from hpcwrap.textfile import read_text

if TYPE_CHECKING:
    import psutil

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "HPCWRAP_JOB")
CONTAINER_VARIABLE = "HPCWRAP_CONTAINER"


class JobUsage(NamedTuple):
    """A job on this node: `cpu` in processors, `memory` in bytes, each shared page counted once.

    `began` is seconds since the epoch.
    """

    job: str
    user: str
    container: str
    processes: int
    cpu: float
    memory: int
    began: float


class Known(NamedTuple):
    """A container of this node that has a name."""

    job: str
    user: str
    container: str
    began: float


Seconds = Dict[Tuple[int, float], float]
"""CPU time of each process, named by its number and start time."""


class Meter:
    """Looks again and again; the use of processors is what came between two looks."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._seconds: Seconds = {}
        self.look()

    def look(self) -> List[JobUsage]:
        """Every job of this node that the caller may see, the busiest first."""
        now = time.monotonic()
        seconds: Seconds = {}
        passed, self._at = max(now - self._at, 1e-3), now
        found = [
            self._measure(known, processes, seconds, passed)
            for known, processes in containers_with_processes()
        ]
        self._seconds = seconds
        return sorted(found, key=lambda job: (-job.cpu, job.job))

    def _measure(
        self, known: Known, processes: List[psutil.Process], seconds: Seconds, passed: float
    ) -> JobUsage:
        worked, memory = 0.0, 0
        for process in processes:
            with suppress(OSError, *gone()):
                key = (process.pid, process.create_time())
                times = process.cpu_times()
                seconds[key] = times.user + times.system
                worked += seconds[key] - self._seconds.get(key, seconds[key])
                memory += memory_of(process)
        return JobUsage(
            known.job,
            known.user,
            known.container,
            len(processes),
            worked / passed,
            memory,
            known.began,
        )


def gone() -> Tuple[Type[BaseException], ...]:
    """What psutil raises for processes that ended meanwhile, or are not ours to see."""
    import psutil

    return (psutil.Error,)


def memory_of(process: psutil.Process) -> int:
    """Memory of a process in bytes; of shared pages its share (proc_pid_smaps(5), Pss)."""
    for line in read_text(f"/proc/{process.pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return int(process.memory_info().rss)


def containers_with_processes() -> Iterator[Tuple[Known, List[psutil.Process]]]:
    """Each container that can be seen, with its processes."""
    grouped = by_namespace()
    jobs = pinned() if os.geteuid() == 0 else named(grouped)
    for namespace, known in jobs.items():
        yield known, grouped.get(namespace, [])


def by_namespace() -> Dict[int, List[psutil.Process]]:
    """Processes whose mount namespace can be seen, by its number."""
    import psutil

    grouped: Dict[int, List[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(OSError):
            namespace = os.stat(f"/proc/{process.pid}/ns/mnt").st_ino
            grouped.setdefault(namespace, []).append(process)
    return grouped


def pinned(jobs: str = paths.JOBS) -> Dict[int, Known]:
    """The containers of this node by their namespace, as their records have them."""
    found = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(jobs):
            place = paths.JobPaths(name, jobs)
            with suppress(OSError, HpcwrapError):
                made = record.read_record(place)
                namespace = os.stat(place.mount_namespace).st_ino
                if made:
                    found[namespace] = Known(name, made.user, made.label, made.started)
    return found


def named(grouped: Mapping[int, List[psutil.Process]]) -> Dict[int, Known]:
    """The containers that the caller's own processes are in."""
    own = os.stat("/proc/self/ns/mnt").st_ino
    found = {}
    for namespace, processes in grouped.items():
        known = None if namespace == own else name_of(processes)
        if known:
            found[namespace] = known
    return found


def name_of(processes: List[psutil.Process]) -> Optional[Known]:
    """What the first process with the variables says of its job."""
    for process in processes:
        with suppress(OSError, *gone()):
            variables = process.environ()
            if CONTAINER_VARIABLE in variables:
                jobs = [variables[name] for name in JOB_VARIABLES if name in variables]
                began = min(each.create_time() for each in processes)
                container = variables[CONTAINER_VARIABLE]
                return Known("".join(jobs[:1]) or "?", process.username(), container, began)
    return None
