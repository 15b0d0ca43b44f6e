"""What jobs have left, by the kernel's and the file systems' own account: hpcwrap is not asked."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Tuple

from clusterlib import leftovers
from fournodes import NODES, FourNodes
from mischief import SLURMD, name_of

DAEMONS = (*SLURMD, "munged")
"""What runs on a node without jobs."""

KEPT = {
    *("jobs", "jobs.lock", "turns", "stage", "good-cpu", "snapshots", "libraries"),
    *("swept", "swept.lock", "ended"),
}
"""What /run/hpcwrap has from the first job on: of the node, of no job."""

OVERLAY = "hpcwrap"
"""The source of the overlay that is a container's root; it hides the squashfs below it."""

Counts = Dict[str, List[str]]


def take(site: FourNodes) -> Counts:
    """All that is there of jobs, on any node, by its kind."""
    counts: Counts = {
        "record": [],
        "file in /run": [],
        "pin": [],
        "image mount": [],
        "process": [],
        "cgroup": [],
        "lease": list(below(site, "leases/*/*")),
        "file in the store": list(below(site, "tmp/*")),
        "loop device": loops(site),
    }
    for node in NODES:
        look_at_node(site, node, counts)
    return counts


def look_at_node(site: FourNodes, node: str, counts: Counts) -> None:
    """Add what one node has."""
    init = site.pids[node]
    run = Path(f"/proc/{init}/root/run/hpcwrap")
    counts["record"] += named(node, names(run / "jobs"))
    counts["file in /run"] += named(node, (name for name in names(run) if name not in KEPT))
    counts["cgroup"] += named(node, site.cgroups(node))
    found = list(processes_of(init))
    counts["process"] += named(node, (f"{pid} {name_of(pid)}" for pid in found))
    for pid in (init, *found):
        for point, kind, source in mounts(pid):
            if kind == "nsfs" and pid == init:
                counts["pin"].append(f"{node} {point}")
            if kind == "squashfs" or source == OVERLAY:
                counts["image mount"].append(f"{node} {point} in process {pid}")


def named(node: str, found: Iterable[str]) -> List[str]:
    """Things of a node, each with its name."""
    return [f"{node} {each}" for each in found]


def names(directory: Path) -> List[str]:
    """The names in a directory; none where there is none."""
    with suppress(FileNotFoundError):
        return sorted(os.listdir(directory))
    return []


def below(site: FourNodes, pattern: str) -> Iterator[str]:
    """Files of the store."""
    store = site.path("shared", "hpcwrap", "store")
    for path in sorted(store.glob(pattern)):
        if path.name != "tmp.lock":
            yield str(path.relative_to(store))


def loops(site: FourNodes) -> List[str]:
    """Loop devices over the cluster's files."""
    own = leftovers.own_devices(site.pids.values())
    return [loop.path for loop in leftovers.loops_of(site.state, own)]


def processes_of(init: int) -> Iterator[int]:
    """All processes of a node's PID namespace but its daemons, whoever has begotten them."""
    own = os.stat(f"/proc/{init}/ns/pid").st_ino
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # gone, or none of ours to look at
            there = os.stat(f"/proc/{name}/ns/pid").st_ino == own
            if there and int(name) != init and not is_daemon(int(name), init):
                yield int(name)


def is_daemon(pid: int, init: int) -> bool:
    """Whether it is a daemon's first process, and not what that has started."""
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return name_of(pid) in DAEMONS and int(parent) == init


def mounts(pid: int) -> Iterator[Tuple[str, str, str]]:
    """Mount points, kinds of file systems and sources of a process's mount namespace."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            kind, source = line.partition(" - ")[2].split()[:2]
            yield line.split()[4], kind, source
