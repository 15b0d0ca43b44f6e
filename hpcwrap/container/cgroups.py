"""Where this process is in the kernel's hierarchies of cgroups, and where a job's can be made.

Version 1 has a hierarchy for each controller or few; version 2 has one for all (cgroups(7)); with
systemd's hybrid layout both are there, each controller in one of them.  The parsers are pure
functions of /proc/self/mountinfo and /proc/self/cgroup.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import FrozenSet, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap.textfile import read_text

PROCS = "cgroup.procs"
SUBTREE = "cgroup.subtree_control"


class Level(NamedTuple):
    """A cgroup of version 2 on the way from the top to our own: what decides who may be below it.

    `available` and `enabled` are controllers: those that it has, and those that its children have.
    """

    path: str
    available: FrozenSet[str]
    enabled: FrozenSet[str]
    is_root: bool
    has_processes: bool


class Hierarchy(NamedTuple):
    """A mounted hierarchy: its version, its controllers (version 1), and our own place in it.

    `mount` and `own` are directories; `levels` (version 2) lead from the one to the other.
    """

    version: int
    controllers: FrozenSet[str]
    mount: str
    own: str
    levels: Tuple[Level, ...] = ()


class Parent(NamedTuple):
    """Where to make a cgroup; `enable`: levels that must give their children controllers first."""

    path: str
    enable: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()


def parse_hierarchies(mountinfo: str, membership: str) -> List[Hierarchy]:
    """Read /proc/self/mountinfo and /proc/self/cgroup; a hierarchy that hides us is left out.

    >>> parse_hierarchies("30 1 0:2 / /c rw - cgroup2 none rw", "0::/a.slice")[0].own
    '/c/a.slice'
    """
    places = [line.split(":", 2) for line in membership.splitlines() if line.count(":") >= 2]
    found: List[Hierarchy] = []
    for line in mountinfo.splitlines():
        mounted = _parse_mount(line, places)
        if mounted and not any(mounted[:2] == each[:2] for each in found):
            found.append(mounted)
    return found


def _parse_mount(line: str, places: Sequence[Sequence[str]]) -> Optional[Hierarchy]:
    left, _, right = line.partition(" - ")
    kind, _, options = right.partition(" ")
    fields = left.split()
    if kind not in ("cgroup", "cgroup2") or len(fields) < 5:
        return None
    root, mount = map(_unescape, fields[3:5])
    words = set(options.split(" ")[-1].split(","))
    for number, names, path in places:
        controllers = frozenset(name for name in names.split(",") if name)
        ours = controllers <= words if controllers else number == "0"
        if ours and bool(controllers) == (kind == "cgroup"):
            own = _below(root, path, mount)
            return Hierarchy(1 if controllers else 2, controllers, mount, own) if own else None
    return None


def _below(root: str, path: str, mount: str) -> str:
    """Where a cgroup's path is under a mount that shows `root` and below; empty where it is not."""
    top = root.rstrip("/")
    if path != (top or "/") and not path.startswith(top + "/"):
        return ""
    return (mount + path[len(top) :]).rstrip("/")


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), text)


def find_hierarchies() -> List[Hierarchy]:
    """The hierarchies of this process, with their levels."""
    parsed = parse_hierarchies(read_text("/proc/self/mountinfo"), read_text("/proc/self/cgroup"))
    found = [each._replace(own=_roots_own(each)) for each in parsed]
    return [
        each._replace(levels=tuple(_read_levels(each))) if each.version == 2 else each
        for each in found
    ]


def _roots_own(hierarchy: Hierarchy) -> str:
    """Our own cgroup, or the lowest above it that is root's, as all those above it are.

    Whoever owns one, such as a user whose session systemd has delegated it to, may move processes
    into it from all cgroups below (cgroups(7)): the user would leave the job's.
    """
    path = hierarchy.mount
    for name in filter(None, hierarchy.own[len(hierarchy.mount) :].split("/")):
        below = f"{path}/{name}"
        if not (_is_roots(below) and _is_roots(f"{below}/{PROCS}")):
            break
        path = below
    return path


def _is_roots(path: str) -> bool:
    with suppress(OSError):
        return os.stat(path).st_uid == 0
    return False


def _read_levels(hierarchy: Hierarchy) -> List[Level]:
    """Look at each cgroup of version 2 from the top to our own."""
    names = [name for name in hierarchy.own[len(hierarchy.mount) :].split("/") if name]
    paths = [os.path.join(hierarchy.mount, *names[:count]) for count in range(len(names) + 1)]
    return [_read_level(path) for path in paths]


def _read_level(path: str) -> Level:
    return Level(
        path,
        frozenset(read_text(f"{path}/cgroup.controllers").split()),
        frozenset(read_text(f"{path}/{SUBTREE}").split()),
        is_root=not os.path.exists(f"{path}/cgroup.type"),
        has_processes=bool(read_text(f"{path}/{PROCS}").strip()),
    )


def choose_parent(levels: Sequence[Level], needed: Iterable[str]) -> Optional[Parent]:
    """Find the lowest cgroup, our own if possible, below which one with controllers can be made.

    One that holds processes itself, other than the root, cannot give controllers to its children
    (cgroups(7), "no internal processes"); a session's or a daemon's own holds some, so a job's
    cgroup is made beside it.  None when not even the top has the controllers, or can give them.
    """
    wanted = frozenset(needed)
    if not wanted <= levels[0].available:
        return None
    for count in range(len(levels), 0, -1):
        chain = levels[:count]
        if all(_can_give(level, wanted) for level in chain):
            return Parent(chain[-1].path, tuple(_missing(chain, wanted)))
    return None


def _can_give(level: Level, wanted: FrozenSet[str]) -> bool:
    return wanted <= level.enabled or level.is_root or not level.has_processes


def _missing(
    chain: Sequence[Level], wanted: FrozenSet[str]
) -> Iterable[Tuple[str, Tuple[str, ...]]]:
    for level in chain:
        lacking = tuple(sorted(wanted - level.enabled))
        if lacking:
            yield level.path, lacking


def write(path: str, text: str) -> None:
    """Write a value in one call, as the kernel's files want it; never makes a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
