"""Limits of a job as a whole, by a cgroup of its own where the scheduler makes none.

`make` is for root before the job begins, `join` for root or for the process that becomes the job,
`release` for the epilog.  Whatever the job starts is in its cgroup as well, and cannot leave it:
the files belong to root.  A file in the job's directory, written before anything is made, says
which cgroups are the job's, so that a later run finds what a killed one left.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from hpcwrap.container.cgroups import PROCS, find_hierarchies, write
from hpcwrap.container.limitplan import Cgroup, Node, plan
from hpcwrap.errors import HpcwrapError, NodeError, SiteError, UserError
from hpcwrap.human import format_binary
from hpcwrap.job import Limits
from hpcwrap.paths import JobPaths
from hpcwrap.record import publish
from hpcwrap.textfile import read_text

HUGE_PAGES = "/sys/kernel/mm/hugepages"
KILL = "cgroup.kill"
"""Kills all at once; of version 2 only, and since Linux 5.14."""

PATIENCE = 10.0
"""Seconds in which killed processes must be gone."""


class Usage(NamedTuple):
    """What a job's cgroup had to tell at its end; `peak` in bytes, 0 when unknown.

    `lost` are files of limits that were no longer there; `refused` is how often the limit of
    processes kept one from starting.
    """

    limits: Limits
    oom_kills: int
    peak: int
    lost: Tuple[str, ...] = ()
    refused: int = 0

    def sentence(self) -> str:
        """What the user is told when the kernel killed processes for memory; else empty."""
        if not self.oom_kills:
            return ""
        killed = f"the kernel killed {self.oom_kills} of its processes"
        if self.limits.memory is None:
            error: HpcwrapError = SiteError(
                f"the job's node had no memory left: {killed}", "use fewer ranks on a node"
            )
        else:
            limit = format_binary(self.limits.memory)
            error = UserError(
                f"the job reached its memory limit of {limit}: {killed}",
                "ask for more memory (--memory), or use fewer ranks",
            )
        return error.sentence()

    def pids_sentence(self) -> str:
        """What the user is told when the job could start no more processes; else empty."""
        if not self.refused:
            return ""
        return UserError(
            f"the job reached its limit of {self.limits.pids} processes and threads: the kernel "
            f"refused {self.refused} more",
            "ask for more (--pids), or use fewer threads",
        ).sentence()

    def warning(self) -> str:
        """What is to be told when somebody took a controller away from the job; else empty."""
        if not self.lost:
            return ""
        return SiteError(
            f"the job had lost limits before its end: another program took {self.lost[0]} away",
            "systemd does so where no unit of a slice uses the controller",
        ).sentence()


def make(limits: Limits, place: JobPaths) -> Tuple[str, ...]:
    """Make the cgroups of a job that its limits need; their directories.

    Raises SiteError when the node cannot hold a job to one of them, UserError for a cpuset that
    it does not have.
    """
    planned = plan(limits, name_of(place), find_hierarchies(), this_node())
    note = {
        "limits": limits._asdict(),
        "cgroups": [[each.path, each.version] for each in planned],
        "files": _files(planned),
    }
    publish(place.cgroups, json.dumps(note).encode(), 0o600)
    for cgroup in planned:
        _make(cgroup)
    _check_cpuset(limits, planned)
    return tuple(cgroup.path for cgroup in planned)


def name_of(place: JobPaths) -> str:
    """The name of a job's cgroups: also the node's, for several may share a machine's kernel."""
    return f"hpcwrap-{os.path.basename(place.directory)}-{os.uname().nodename}"


def join(place: JobPaths, process: int = 0) -> None:
    """Move a process into the cgroups of a job, if it has any; 0 is the caller itself.

    Raises SiteError.
    """
    for path, _ in _read_note(place).get("cgroups", ()):
        try:
            write(f"{path}/{PROCS}", str(process))
        except OSError as error:
            raise SiteError(
                f"cannot move the job into its cgroup {path}: {error.strerror}"
            ) from error


def release(place: JobPaths) -> Optional[Usage]:
    """Kill what is in the cgroups of a job, and remove them; None when it has none.

    Raises NodeError when processes do not end.  May run twice.
    """
    note = _read_note(place)
    if not note:
        return None
    cgroups = [(str(path), int(version)) for path, version in note["cgroups"]]
    limits = Limits(**note["limits"])
    refused = _read_refused(limits, cgroups)
    _end_processes(cgroups)
    lost = _lost(note.get("files", ()))
    usage = _read_usage(limits, cgroups)._replace(lost=lost, refused=refused)
    for path, _ in cgroups:
        _remove(path)
    return usage


def end_lost(path: str, version: int) -> None:
    """Kill what is in a cgroup that has outlived its job, and remove it.  Raises NodeError."""
    _end_processes([(path, version)])
    _remove(path)


# ---- making ----


def this_node() -> Node:
    """What the plan has to know of the node."""
    return Node(huge_page_sizes(), has_swap=len(read_text("/proc/swaps").splitlines()) > 1)


def huge_page_sizes(directory: str = HUGE_PAGES) -> Tuple[str, ...]:
    """Sizes of huge pages of the node, as files of cgroups have them in their names: 2MB, 1GB."""
    sizes = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            kilobytes = int(name[len("hugepages-") : -len("kB")])
            sizes.append(_huge_name(kilobytes))
    return tuple(sizes)


def _huge_name(kilobytes: int) -> str:
    """Name a size as the kernel does (mm/hugetlb_cgroup.c, mem_fmt)."""
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= size:
            return f"{kilobytes // size}{unit}"
    return f"{kilobytes}KB"


def _files(planned: Sequence[Cgroup]) -> List[str]:
    """The files that hold the job to its limits: they are there as long as the controllers are."""
    return [
        f"{cgroup.path}/{setting.file}"
        for cgroup in planned
        for setting in cgroup.settings
        if not setting.optional
    ]


def _make(cgroup: Cgroup) -> None:
    for setting in cgroup.enable:
        _set(setting.file, setting.value)
    try:
        os.mkdir(cgroup.path, 0o755)
    except OSError as error:
        raise SiteError(f"cannot make the cgroup {cgroup.path}: {error.strerror}") from error
    for file in cgroup.copied:
        _set(f"{cgroup.path}/{file}", read_text(f"{os.path.dirname(cgroup.path)}/{file}").strip())
    for setting in cgroup.settings:
        path = f"{cgroup.path}/{setting.file}"
        if not setting.optional or os.path.exists(path):
            _set(path, setting.value)


def _set(path: str, value: str) -> None:
    try:
        write(path, value)
    except FileNotFoundError:
        hint = "boot with swapaccount=1" if "swap" in path or "memsw" in path else ""
        raise SiteError(f"cannot limit the job: this kernel has no {path}", hint) from None
    except OSError as error:
        if path.endswith("/cpuset.cpus"):
            raise _no_such_cpus(value, _cpus_of(f"{os.path.dirname(path)}/..")) from error
        raise SiteError(f"cannot write {value!r} to {path}: {error.strerror}") from error


def _no_such_cpus(wanted: str, there: str) -> UserError:
    known = f"there are {there.strip()}" if there.strip() else "they are not there"
    return UserError(f"cannot give the job the CPUs {wanted}: {known}", "name others")


def _cpus_of(path: str) -> str:
    """The CPUs that a cgroup has, as its version tells it; empty without the controller."""
    return read_text(f"{path}/cpuset.cpus.effective") or read_text(f"{path}/cpuset.effective_cpus")


def _check_cpuset(limits: Limits, planned: Sequence[Cgroup]) -> None:
    """Version 2 takes CPUs that it cannot give, and then gives all those of the parent."""
    if limits.cpuset is None:
        return
    for cgroup in planned:
        given = _cpus_of(cgroup.path)
        if given and parse_cpus(given) != parse_cpus(limits.cpuset):
            raise _no_such_cpus(limits.cpuset, given)


def parse_cpus(text: str) -> Tuple[int, ...]:
    """The numbers of a list as the kernel writes it (cpuset(7)).

    >>> parse_cpus("0-2,5")
    (0, 1, 2, 5)

    Raises ValueError.
    """
    numbers: Set[int] = set()
    for word in text.strip().split(","):
        first, _, last = word.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


# ---- the end ----


def _read_note(place: JobPaths) -> Dict[str, Any]:
    """What `make` wrote, empty without limits.  Raises SiteError: a job must not go without."""
    try:
        with open(place.cgroups, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SiteError(f"cannot read {place.cgroups}: {error}") from error


def _lost(files: Sequence[str]) -> Tuple[str, ...]:
    """Those of the files that have gone from cgroups that are still there."""
    return tuple(
        file for file in files if os.path.isdir(os.path.dirname(file)) and not os.path.exists(file)
    )


def _end_processes(cgroups: Sequence[Tuple[str, int]]) -> None:
    """Kill until nobody is left: killed processes take a moment, and forks may be under way."""
    until = time.monotonic() + PATIENCE
    pause = 0.001
    for path, _ in cgroups:
        with suppress(OSError):
            write(f"{path}/pids.max", "0")  # where it is there, nobody is born any more
    while any(_processes(path) for path, _ in cgroups):
        if time.monotonic() > until:
            raise NodeError(f"cannot end the processes in {cgroups[0][0]}", "are they in state D?")
        for path, version in cgroups:
            _kill(path, version)
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill(path: str, version: int) -> None:
    """Kill all processes of a cgroup and those below it; what is gone already is fine."""
    with suppress(FileNotFoundError):
        if version == 2:
            write(f"{path}/{KILL}", "1")
            return
    freezer, freeze, thaw = FREEZERS[version]
    with suppress(FileNotFoundError):
        write(f"{path}/{freezer}", freeze)
    for process in _processes(path):
        _kill_process(process, path)
    with suppress(FileNotFoundError):
        write(f"{path}/{freezer}", thaw)


FREEZERS = {1: ("freezer.state", "FROZEN", "THAWED"), 2: ("cgroup.freeze", "1", "0")}


def _kill_process(process: int, path: str) -> None:
    """Kill a process, held by a descriptor so that it cannot be another that has its number now."""
    try:
        held = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        if process in _processes(path):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(held, signal.SIGKILL)
    finally:
        os.close(held)


def _processes(path: str) -> List[int]:
    """Numbers of the processes in a cgroup and in those below it."""
    return [
        int(line)
        for directory, _, _ in os.walk(path)
        for line in read_text(f"{directory}/{PROCS}").split()
        if line != "0"
    ]


def _remove(path: str) -> None:
    """Remove a cgroup and those below it, which may take a moment after its last process."""
    until = time.monotonic() + PATIENCE
    for directory, _, _ in os.walk(path, topdown=False):
        while not _removed(directory):
            if time.monotonic() > until:
                raise NodeError(f"cannot remove the cgroup {directory}: it is busy")
            time.sleep(0.005)


def _removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read_usage(limits: Limits, cgroups: Sequence[Tuple[str, int]]) -> Usage:
    """Sum up over all cgroups: one of them has the memory controller, if any."""
    counts, peaks = [0], [0]
    for path, _ in cgroups:
        for file in ("memory.events", "memory.oom_control"):
            words = read_text(f"{path}/{file}").split()
            counts += [int(n) for key, n in zip(words, words[1:]) if key == "oom_kill"]
        for file in ("memory.peak", "memory.max_usage_in_bytes"):
            peaks += [int(text) for text in read_text(f"{path}/{file}").split()]
    return Usage(limits, sum(counts), max(peaks))


def _read_refused(limits: Limits, cgroups: Sequence[Tuple[str, int]]) -> int:
    """How many processes the limit kept from starting, told before `_end_processes` lowers it."""
    if limits.pids is None:
        return 0
    counts = [0]
    for path, _ in cgroups:
        if read_text(f"{path}/pids.max").strip() == str(limits.pids):
            counts += [int(text) for text in read_text(f"{path}/pids.events").split()[1:2]]
    return sum(counts)
