"""What is done to a churning cluster, each at the process itself: nobody is asked to end."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Sequence, TypeVar

from clusterlib import processes
from deck import Blow
from fournodes import NODES, FourNodes

SIGHT = 10.0
"""Seconds that a killer lies in wait; when nothing comes, nothing is killed, and not counted."""

PAUSE = 0.002

SLURMD = ("slurmd", "slurmd-wlm")
"""What slurmd calls itself, in Debian 12 and later."""

TITLE = re.compile(r"^slurmstepd: \[(\d+)\.")

Choice = TypeVar("Choice")


def strike(site: FourNodes, blow: Blow) -> bool:
    """Do it; whether there was anybody to do it to."""
    return BLOWS[blow.kind](site, blow)


def cancel(site: FourNodes, blow: Blow) -> bool:
    """Cancel a job that waits, runs or ends; every other one so that nothing of it may linger."""
    ids = [row.id for row in site.queue() if not row.ended]
    if not ids:
        return False
    signals = ["--signal=KILL", "--full"] if blow.share > 0.5 else []
    site.run("ctl", "scancel", "--quiet", *signals, pick(ids, blow), check=False)
    return True


def kill_stage(site: FourNodes, blow: Blow, stage: str) -> bool:
    """Kill our Python of a prolog or an epilog, a while after it was seen."""
    words = f'main("{stage}", "slurm")'
    until = time.monotonic() + SIGHT
    roots = list(site.pids.values())
    while time.monotonic() < until:
        for pid in descendants(roots):
            if words in " ".join(processes.command_line(pid)[-1:]):
                return kill(pid, blow.after)
        time.sleep(PAUSE)
    return False


def kill_prolog(site: FourNodes, blow: Blow) -> bool:
    """Kill a prolog."""
    return kill_stage(site, blow, "prolog")


def kill_epilog(site: FourNodes, blow: Blow) -> bool:
    """Kill an epilog."""
    return kill_stage(site, blow, "epilog")


def kill_slurmd(site: FourNodes, blow: Blow) -> bool:
    """Kill a node's slurmd, and start it again."""
    node = pick(NODES, blow)
    killed = kill_daemon(site, node)
    time.sleep(blow.after)
    site.run(node, "slurmd")
    return killed


def kill_daemon(site: FourNodes, node: str) -> bool:
    """Kill a node's slurmd, and none of what it has started."""
    daemons = [pid for pid in children(site.pids[node]) if name_of(pid) in SLURMD]
    return any([kill(pid) for pid in daemons])  # noqa: C419  (all of them)


def kill_slurmstepd(site: FourNodes, blow: Blow) -> bool:
    """Kill who watches a step; its node is asked at once which jobs it has, else in minutes."""
    running = [pid for pid in descendants(site.pids.values()) if name_of(pid) == "slurmstepd"]
    found = {pid: job for pid in running for job in watched_by(pid)}
    if not found or not kill(pid := pick(list(found), blow)):
        return False
    site.unwatched |= {found[pid]}
    site.run("ctl", "scontrol", "reconfigure")
    return True


def watched_by(pid: int) -> List[str]:
    """The job of a slurmstepd, by its title, `slurmstepd: [JOB.STEP]`; none before it has one."""
    return TITLE.findall(" ".join(processes.command_line(pid)))


def collect_garbage(site: FourNodes, blow: Blow) -> bool:
    """Have a node remove from the store what nobody needs; before the first job there is none."""
    if not site.path("shared", "hpcwrap", "store", "images").is_dir():
        return False
    site.run(pick(NODES, blow), "hpcwrap", "image", "gc", "--quiet")
    return True


def reboot(site: FourNodes, blow: Blow) -> bool:
    """Take a node's power away, and boot it anew."""
    site.need("cluster", "reboot", pick(NODES, blow), "sh", "/shared/provision.sh")
    return True


BLOWS: Dict[str, Callable[[FourNodes, Blow], bool]] = {
    "cancel": cancel,
    "kill prolog": kill_prolog,
    "kill epilog": kill_epilog,
    "kill slurmd": kill_slurmd,
    "kill slurmstepd": kill_slurmstepd,
    "collect garbage": collect_garbage,
    "reboot": reboot,
}


# ---- processes, as this machine numbers them ----


def pick(choices: Sequence[Choice], blow: Blow) -> Choice:
    """The one that the seed has chosen."""
    return choices[int(blow.share * len(choices))]


def descendants(roots: Iterable[int]) -> List[int]:
    """All processes below others, the nearest first."""
    found: List[int] = []
    waiting = list(roots)
    while waiting:
        new = children(waiting.pop(0))
        found += new
        waiting += new
    return found


def children(pid: int) -> List[int]:
    """The children of all threads of a process (proc_tid_children(5))."""
    found: List[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def name_of(pid: int) -> str:
    """A process's name; empty for one that is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill(pid: int, after: float = 0.0) -> bool:
    """Kill this very process after some seconds; False when it has ended before."""
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            time.sleep(after)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            return True
        finally:
            os.close(fd)
    return False
