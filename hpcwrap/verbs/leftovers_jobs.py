"""Jobs that nobody ends any more, and what of the kernel's has outlived its job's directory."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Dict, FrozenSet, Iterator, List, Tuple

from hpcwrap import epilog, owners, paths, sweep, usage
from hpcwrap.container import build, cgroups, limits, namespaces, syscalls
from hpcwrap.schedulers import pbs, slurm_status
from hpcwrap.textfile import read_text
from hpcwrap.verbs.leftover import Kind, Leftover, Node, is_at_work

if TYPE_CHECKING:
    import psutil

DEPTH = 4
"""Levels of cgroups in which a job's can be."""

YOUNG = 60.0
"""Seconds after which a job has joined its cgroup."""

MOMS_PATIENCE = 600.0
"""Seconds after which pbs_mom has written the file of a job that it has."""

# ---- jobs ----


def jobs_without_owner(_node: Node) -> Iterator[Leftover]:
    """Those of schedulers whose epilog may not come: all their processes are gone."""
    for job in sweep.left_over(paths.JOBS):
        place = paths.JobPaths(job, paths.JOBS)
        detail = f"no process owns it any more{holds(place)}"
        yield Leftover(place.directory, "job", detail, partial(sweep.end, place))


def jobs_that_have_ended(node: Node) -> Iterator[Leftover]:
    """Those that their scheduler does not know any more: no epilog will come."""
    for job in ended_jobs(node):
        place = paths.JobPaths(job, paths.JOBS)
        detail = f"{node.scheduler} does not know it any more{holds(place)}"
        yield Leftover(place.directory, "job", detail, partial(end_same, place, identity(place)))


def jobs_half_made(node: Node) -> Iterator[Leftover]:
    """Directories that a killed prolog left, of jobs that no scheduler can be asked for."""
    for job in node.jobs:
        place = paths.JobPaths(job, paths.JOBS)
        if not may_outlive(node, job) and is_half_made(place):
            detail = f"its prolog was killed: there is neither record nor error{holds(place)}"
            yield Leftover(
                place.directory, "job", detail, partial(end_same, place, identity(place))
            )


def ended_jobs(node: Node) -> List[str]:
    """Ids of jobs here that the scheduler, asked after they were listed, does not know any more."""
    asked = [job for job in node.jobs if may_outlive(node, job)]
    known = known_jobs(node, asked) if asked else frozenset()
    return [job for job in asked if job not in known]


def may_outlive(node: Node, job: str) -> bool:
    """Whether a job's end is its scheduler's to tell: it is without owners of ours."""
    of_slurm = node.scheduler == "slurm" and job.isdigit()
    of_pbs = node.scheduler == "pbs" and job.startswith(pbs.PREFIX)
    return (of_slurm or of_pbs) and needs_epilog(paths.JobPaths(job, paths.JOBS))


def known_jobs(node: Node, asked: List[str]) -> FrozenSet[str]:
    """Those of the asked jobs that have not ended.  Raises HpcwrapError where nobody can tell."""
    if node.scheduler == "slurm":
        return slurm_status.read_ids(node.settings)
    return frozenset(filter(is_known_to_mom, asked))


def is_known_to_mom(job: str) -> bool:
    """Whether pbs_mom has a job, as epilog/pbs.py tells it: by its file, which may be late."""
    home = pbs.read_installation(os.environ).home
    place = paths.JobPaths(job, paths.JOBS)
    with suppress(FileNotFoundError):
        young = os.stat(place.directory).st_mtime > time.time() - MOMS_PATIENCE
        return young or os.path.exists(f"{home}/mom_priv/jobs/{job[len(pbs.PREFIX) :]}.JB")
    return True


def needs_epilog(place: paths.JobPaths) -> bool:
    """True for a job that no sweep ends: it has no owners, and its directory was filled."""
    return not os.path.isdir(place.owners) and not sweep.is_left_over(place)


def is_half_made(place: paths.JobPaths) -> bool:
    """Whether a prolog began and neither came to its end, well or not, nor is at it still."""
    return needs_epilog(place) and not is_complete(place) and not is_at_work(place)


def is_complete(place: paths.JobPaths) -> bool:
    """Whether a prolog came to its end, well or not."""
    return any(map(os.path.exists, (place.entry, place.error, place.record)))


def holds(place: paths.JobPaths) -> str:
    """What of the kernel's a job's directory keeps, for people."""
    parts = {
        "a pinned mount namespace": os.path.lexists(place.mount_namespace),
        "a pinned user namespace": os.path.lexists(place.user_namespace),
        "a cgroup": os.path.exists(place.cgroups),
        "a process that holds its namespace": os.path.exists(place.holder),
    }
    there = [name for name, has in parts.items() if has]
    return f"; it has {', '.join(there)}" if there else ""


def identity(place: paths.JobPaths) -> Tuple[int, ...]:
    """What tells a job's directory from one of the same name later; empty when it is gone.

    Nobody changes a directory that was left.  Of a number alone, file systems may make use again.
    """
    try:
        found = os.stat(place.directory)
    except OSError:
        return ()
    return (found.st_ino, found.st_ctime_ns)


def end_same(place: paths.JobPaths, same: Tuple[int, ...]) -> bool:
    """End a job, unless it was begun anew since it was found, or somebody is at it."""
    with owners.turn(place, wait=False) as ours:
        if not ours or identity(place) != same:
            return False
        summary = epilog.finish(place)
    if summary is not None:
        epilog.keep(summary)
    return True


# ---- mounts, processes, cgroups ----


def mounts(node: Node) -> Iterator[Leftover]:
    """Mounts below /run/hpcwrap that are no job's: a pin, or a builder's that came out."""
    lines = read_text("/proc/self/mountinfo").splitlines()
    points = {line.split()[4]: line for line in lines}
    for point, line in points.items():
        if point.startswith(f"{paths.RUN}/") and not is_jobs_own(point, node.jobs):
            kind = "pin" if " - nsfs " in line else "mount"
            yield Leftover(point, kind, "no job has it", partial(unmount, point))


def is_jobs_own(point: str, jobs: List[str]) -> bool:
    """Whether a mount is a job's, or that of the directory of all jobs."""
    directory, _, below = point.partition(f"{paths.JOBS}/")
    return point == paths.JOBS or (not directory and below.partition("/")[0] in jobs)


def unmount(point: str) -> bool:
    """Take away all that is mounted on a path."""
    namespaces.unmount(point)
    return not namespaces.is_mount_point(point)


def processes(_node: Node) -> Iterator[Leftover]:
    """Processes in a container whose job is gone; which roots jobs have is looked up after them."""
    found = [
        (process, root)
        for namespace, members in usage.by_namespace().items()
        if namespace != namespace_of("self", "mnt")
        for process in members
        for root in [root_of(process.pid)]
        if root and is_lost(process)
    ]
    living = living_roots() if found else frozenset()
    for process, root in found:
        if root not in living:
            detail = f"{name_of(process)} is in a container whose job is gone"
            yield Leftover(
                f"process {process.pid}", "process", detail, partial(kill, process, root)
            )


def root_of(process: int) -> str:
    """The device of a process's root, if that is one that hpcwrap makes; else empty.

    As proc_pid_mountinfo(5) has it.  It is one number for the overlay of a container, in whatever
    mount namespaces its processes make for themselves (container/operations.py, Root).
    """
    for line in read_text(f"/proc/{process}/mountinfo").splitlines():
        words = line.split()
        if words[4] == "/" and words[-3:-1] == ["overlay", "hpcwrap"]:
            return words[2]
    return ""


def is_lost(process: psutil.Process) -> bool:
    """Whether a process is this node's, and no builder, whose namespace is about to be pinned."""
    if namespace_of(process.pid, "uts") != namespace_of("self", "uts"):
        return False
    is_ours = same_file(f"/proc/{process.pid}/exe", "/proc/self/exe")
    return not is_ours or name_of(process) == build.HOLDER


def name_of(process: psutil.Process) -> str:
    """What a process calls itself; empty when it is gone."""
    return read_text(f"/proc/{process.pid}/comm").strip()


def namespace_of(process: object, kind: str) -> int:
    """The number of a process's namespace; 0 when it is gone or not to be seen."""
    try:
        return os.stat(f"/proc/{process}/ns/{kind}").st_ino
    except OSError:
        return 0


def same_file(one: str, other: str) -> bool:
    """Whether two paths are of one file; a process without a program is a kernel's, or gone."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return True


def living_roots() -> FrozenSet[str]:
    """The devices of the roots of this node's jobs.  Raises OSError where one cannot be seen."""
    jobs = os.listdir(paths.JOBS) if os.path.isdir(paths.JOBS) else []
    pins = [paths.JobPaths(job, paths.JOBS).mount_namespace for job in jobs]
    return frozenset(root_behind(pin) for pin in pins if namespaces.is_pinned(pin))


def root_behind(pin: str) -> str:
    """The device of the root in a mount namespace; a child looks, for nobody comes back from there.

    Raises OSError.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            syscalls.setns(os.open(pin, os.O_RDONLY), syscalls.CLONE_NEWNS)
            device = os.stat("/").st_dev
            os.write(writing, f"{os.major(device)}:{os.minor(device)}".encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        found = file.read()
    os.waitpid(child, 0)
    if not found and namespaces.is_pinned(pin):
        raise OSError(f"cannot look into the mount namespace {pin}")
    return found


def kill(process: psutil.Process, root: str) -> bool:
    """Kill a process that still has the root, if no job has that."""
    if root_of(process.pid) != root or root in living_roots():
        return False
    with suppress(*usage.gone()):
        process.kill()
        process.wait(limits.PATIENCE)
    return root_of(process.pid) != root


def lost_cgroups(node: Node) -> Iterator[Leftover]:
    """Cgroups of this node's jobs that are not there any more: one in each hierarchy, perhaps."""
    own = re.compile(rf"hpcwrap-(.+)-{re.escape(os.uname().nodename)}")
    jobs = node.jobs
    lost: Dict[str, List[Tuple[str, int]]] = {}
    for hierarchy in cgroups.find_hierarchies():
        for path in directories(hierarchy.mount, DEPTH):
            found = own.fullmatch(os.path.basename(path))
            if found and found.group(1) not in jobs:
                lost.setdefault(found.group(1), []).append((path, hierarchy.version))
    for job, places in lost.items():
        place = paths.JobPaths(job, paths.JOBS)
        inside = {process for path, _ in places for process in inside_of(path)}
        where = " ".join(path for path, _ in places)
        detail = f"its job is gone; processes in it: {len(inside)}"
        yield Leftover(where, "cgroup", detail, partial(end_cgroups, place, places))


def inside_of(path: str) -> List[str]:
    """Numbers of the processes in a cgroup."""
    return read_text(f"{path}/{cgroups.PROCS}").split()


def end_cgroups(place: paths.JobPaths, places: List[Tuple[str, int]]) -> bool:
    """Kill what is in a job's cgroups, and remove them; False where they may be another node's."""
    if is_anothers([path for path, _ in places]):
        return False
    with owners.turn(place, wait=False) as ours:
        if not ours or os.path.isdir(place.directory):
            return False
        for path, version in places:
            limits.end_lost(path, version)
    return True


def is_anothers(found: List[str]) -> bool:
    """Whether cgroups may be of a node of the same name that shares this kernel.

    Their processes tell; without any, they are believed to be ours once no job is about to join.
    """
    own = namespace_of("self", "uts")
    inside = [process for path in found for process in inside_of(path)]
    if inside:
        return any(namespace_of(process, "uts") not in (own, 0) for process in inside)
    return any(os.stat(path).st_mtime > time.time() - YOUNG for path in found)


def directories(top: str, depth: int) -> Iterator[str]:
    """Directories below another, so many levels deep."""
    with suppress(OSError):
        for entry in os.scandir(top):
            if entry.is_dir(follow_symlinks=False):
                yield entry.path
                if depth > 1:
                    yield from directories(entry.path, depth - 1)


KINDS: Tuple[Kind, ...] = (
    *(jobs_without_owner, jobs_that_have_ended, jobs_half_made),
    *(mounts, processes, lost_cgroups),
)
