"""Which cgroups hold a job to its limits, and what is written into them: pure data, no action."""

from __future__ import annotations

from typing import Callable, Iterable, Iterator, List, Mapping, NamedTuple, Sequence, Set, Tuple

from hpcwrap.container.cgroups import SUBTREE, Hierarchy, choose_parent
from hpcwrap.errors import SiteError
from hpcwrap.job import Limits

PERIOD = 100_000
"""Of the processor's time, in µs: the kernel's default, in which a quota is counted."""

CONTROLLERS = {
    "memory": "memory",
    "swap": "memory",
    "cpus": "cpu",
    "cpuset": "cpuset",
    "pids": "pids",
    "hugetlb": "hugetlb",
}
"""The controller that each limit needs."""


class Setting(NamedTuple):
    """A value for one file of a cgroup; an optional one is not missed where the kernel has none."""

    file: str
    value: str
    optional: bool = False


class Cgroup(NamedTuple):
    """A cgroup to make, of a version.

    `enable` are files further up, with the controllers that are written there first; `copied` are
    files that get what the parent's have.
    """

    path: str
    version: int
    enable: Tuple[Setting, ...] = ()
    copied: Tuple[str, ...] = ()
    settings: Tuple[Setting, ...] = ()


class Node(NamedTuple):
    """What of this node decides how limits are set: sizes of huge pages as in 2MB, swap or none."""

    huge_pages: Tuple[str, ...] = ()
    has_swap: bool = False


def plan(
    limits: Limits, name: str, hierarchies: Sequence[Hierarchy], node: Node
) -> Tuple[Cgroup, ...]:
    """Say which cgroups of this name hold a job to its limits; the first is for ending it.

    Raises SiteError naming a controller that a limit needs and that this node, or our place on it,
    does not have.
    """
    asked = [limit for limit, value in limits._asdict().items() if value is not None]
    needed = {CONTROLLERS[limit] for limit in asked}
    planned = []
    for hierarchy in hierarchies:
        if hierarchy.controllers & needed:
            settings = _settings(SETTINGS_V1, hierarchy.controllers & needed, limits, node)
            planned.append(_plan_v1(hierarchy, name, settings))
            needed -= hierarchy.controllers
    unified = [hierarchy for hierarchy in hierarchies if hierarchy.version == 2]
    if unified:
        settings = _settings(SETTINGS_V2, needed, limits, node)
        return (_plan_v2(unified[0], name, needed, settings), *planned)
    if needed:
        raise _lacking(needed)
    return (*_plan_freezer(hierarchies, name), *planned)


def _settings(
    table: Mapping[str, Planner], controllers: Iterable[str], limits: Limits, node: Node
) -> Tuple[Setting, ...]:
    return tuple(setting for each in sorted(controllers) for setting in table[each](limits, node))


def _plan_v1(hierarchy: Hierarchy, name: str, settings: Tuple[Setting, ...]) -> Cgroup:
    # No process can join before both are set (cgroup-v1/cpusets.rst); cpus may be replaced below.
    copied = ("cpuset.cpus", "cpuset.mems") if "cpuset" in hierarchy.controllers else ()
    return Cgroup(f"{hierarchy.own}/{name}", 1, copied=copied, settings=settings)


def _plan_v2(
    hierarchy: Hierarchy, name: str, needed: Set[str], settings: Tuple[Setting, ...]
) -> Cgroup:
    parent = choose_parent(hierarchy.levels, needed)
    if parent is None:
        lacking = needed - hierarchy.levels[0].available
        raise _lacking(lacking) if lacking else _occupied(hierarchy.mount)
    enable = (
        Setting(f"{path}/{SUBTREE}", " ".join(f"+{each}" for each in names))
        for path, names in parent.enable
    )
    return Cgroup(f"{parent.path}/{name}", 2, enable=tuple(enable), settings=settings)


def _plan_freezer(hierarchies: Sequence[Hierarchy], name: str) -> List[Cgroup]:
    """Without version 2, processes are frozen first: some start others faster than we kill."""
    return [
        Cgroup(f"{hierarchy.own}/{name}", 1)
        for hierarchy in hierarchies
        if "freezer" in hierarchy.controllers
    ]


def _occupied(top: str) -> SiteError:
    """In a container of another kind, whose top is not the root of all cgroups."""
    return SiteError(
        f"cannot limit the job: {top} holds processes itself, so no cgroup below it can be limited",
        "move them into one below it, or run hpcwrap on the host",
    )


def _lacking(controllers: Iterable[str]) -> SiteError:
    missing = sorted(controllers)
    limits = [limit for limit, controller in CONTROLLERS.items() if controller in missing]
    return SiteError(
        f"cannot limit the job's {', '.join(limits)}: "
        f"cgroups have no controller {', '.join(missing)} here",
        f"boot with cgroup_enable={missing[0]}, or have it delegated to who starts jobs",
    )


def _memory_v1(limits: Limits, node: Node) -> Iterator[Setting]:
    if limits.memory is not None:
        yield Setting("memory.limit_in_bytes", str(limits.memory))
    if limits.swap is not None:
        both = str((limits.memory or 0) + limits.swap)
        yield Setting("memory.memsw.limit_in_bytes", both, optional=not node.has_swap)


def _memory_v2(limits: Limits, node: Node) -> Iterator[Setting]:
    if limits.memory is not None:
        yield Setting("memory.max", str(limits.memory))
    if limits.swap is not None:
        yield Setting("memory.swap.max", str(limits.swap), optional=not node.has_swap)


def _cpu_v1(limits: Limits, _node: Node) -> Iterator[Setting]:
    yield Setting("cpu.cfs_period_us", str(PERIOD))
    yield Setting("cpu.cfs_quota_us", _quota(limits))


def _cpu_v2(limits: Limits, _node: Node) -> Iterator[Setting]:
    yield Setting("cpu.max", f"{_quota(limits)} {PERIOD}")


def _quota(limits: Limits) -> str:
    return str(round((limits.cpus or 0) * PERIOD))


def _cpuset(limits: Limits, _node: Node) -> Iterator[Setting]:
    yield Setting("cpuset.cpus", limits.cpuset or "")


def _pids(limits: Limits, _node: Node) -> Iterator[Setting]:
    yield Setting("pids.max", str(limits.pids))


def _hugetlb_v1(limits: Limits, node: Node) -> Iterator[Setting]:
    yield from _hugetlb(limits, node, "limit_in_bytes")


def _hugetlb_v2(limits: Limits, node: Node) -> Iterator[Setting]:
    yield from _hugetlb(limits, node, "max")


def _hugetlb(limits: Limits, node: Node, word: str) -> Iterator[Setting]:
    """Of what is reserved, so that mmap(2) fails; of what is used, processes would be killed."""
    for size in node.huge_pages:
        yield Setting(f"hugetlb.{size}.rsvd.{word}", str(limits.hugetlb), optional=True)
        yield Setting(f"hugetlb.{size}.{word}", str(limits.hugetlb))


Planner = Callable[[Limits, Node], Iterator[Setting]]

SETTINGS_V1: Mapping[str, Planner] = {
    "memory": _memory_v1,
    "cpu": _cpu_v1,
    "cpuset": _cpuset,
    "pids": _pids,
    "hugetlb": _hugetlb_v1,
}
SETTINGS_V2: Mapping[str, Planner] = {
    "memory": _memory_v2,
    "cpu": _cpu_v2,
    "cpuset": _cpuset,
    "pids": _pids,
    "hugetlb": _hugetlb_v2,
}
