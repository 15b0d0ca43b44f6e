"""munged, docker-registry, slurmctld and slurmd: start, stop, wait until they answer."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, Mapping

from clusterlib.errors import ToolError
from clusterlib.layout import (
    CONTROLLER,
    REGISTRY_PORT,
    ROOT_PATH,
    SLURM_LOG_DIR,
    SLURMCTLD_PID_FILE,
    SLURMD_PID_FILE,
    address,
)
from clusterlib.processes import run_in, start_in, wait_until

# All is up after a second or two; this is for a machine that is busy with other things.
PATIENCE_S = 60
# How long `restart` waits for the jobs that are there.
JOBS_PATIENCE_S = 60

MUNGED = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"]
REGISTRY = ["setsid", "--fork", "docker-registry", "serve", "/etc/docker/registry/config.yml"]
REGISTRY_LOG = "/var/log/docker-registry.log"
TCP_LISTEN = "0A"


def start_all(pids: Mapping[str, int]) -> None:
    """Start every daemon of every node and wait until all answer."""
    start_in(pids[CONTROLLER], REGISTRY, REGISTRY_LOG)
    _on_each(pids.values(), lambda pid: run_in(pid, MUNGED))
    start_slurm(pids)
    wait_until(lambda: registry_listens(pids[CONTROLLER]), PATIENCE_S, "the registry did not start")


def start_slurm(pids: Mapping[str, int]) -> None:
    """Start slurmctld and all slurmd, and wait until slurmctld has heard from every node."""
    controller = pids[CONTROLLER]
    run_in(controller, ["slurmctld"])
    _on_each(_compute(pids), lambda pid: run_in(pid, ["slurmd"]))
    expected = len(pids) - 1
    wait_until(
        lambda: answering_nodes(controller) == expected,
        PATIENCE_S,
        f"not all nodes reported to slurmctld (see {SLURM_LOG_DIR} in ctl and in the nodes)",
    )


def stop_slurm(pids: Mapping[str, int]) -> None:
    """Wait until no job is left, then stop slurmctld and all slurmd."""
    controller = pids[CONTROLLER]
    wait_until(
        lambda: not jobs(controller),
        JOBS_PATIENCE_S,
        "the jobs in the queue did not end (see squeue, and scancel those not wanted)",
    )
    _stop(controller, SLURMCTLD_PID_FILE)
    _on_each(_compute(pids), lambda pid: _stop(pid, SLURMD_PID_FILE))


def node_states(controller: int) -> dict[str, str]:
    """Node → what sinfo says of it; empty when slurmctld does not answer."""
    text = run_in(controller, ["sinfo", "-h", "-N", "-o", "%N %T"], check=False)
    pairs = [line.split() for line in text.splitlines()]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def answering_nodes(controller: int) -> int:
    """How many nodes have reported; sinfo marks those that have not by `*` (sinfo(1), STATE)."""
    silent = ("unknown", "down")
    states = node_states(controller).values()
    return sum(1 for state in states if not state.endswith("*") and state not in silent)


def jobs(controller: int) -> list[str]:
    """Numbers of the jobs that slurmctld still has to run or to clean up after."""
    return run_in(controller, ["squeue", "-h", "-o", "%i"]).split()


def registry_listens(controller: int) -> bool:
    """Whether ctl's network namespace has the registry's socket (/proc/net/tcp, proc(5))."""
    octets = [int(part) for part in address(CONTROLLER).split(".")]
    where = "".join(f"{octet:02X}" for octet in reversed(octets)) + f":{REGISTRY_PORT:04X}"
    with open(f"/proc/{controller}/net/tcp", encoding="ascii") as file:
        sockets = [line.split()[1:4] for line in file]
    return any(local == where and state == TCP_LISTEN for local, _, state in sockets[1:])


def _compute(pids: Mapping[str, int]) -> list[int]:
    return [pid for node, pid in pids.items() if node != CONTROLLER]


def _on_each(pids: Iterable[int], action: Callable[[int], object]) -> None:
    """Do the same in several nodes at once; the first failure is raised."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(action, pids))


def _stop(pid: int, pid_file: str) -> None:
    """End the daemon of a node whose number is in `pid_file`; wait until it is gone."""
    inside = f"/proc/{pid}/root"
    try:
        with open(inside + pid_file, encoding="ascii") as file:
            number = file.read().strip()
    except FileNotFoundError:
        return
    run_in(pid, ["kill", "-TERM", number], check=False)
    gone = f"{inside}/proc/{number}"
    wait_until(lambda: not os.path.exists(gone), PATIENCE_S, f"{pid_file}'s daemon did not stop")


def check_programs() -> None:
    """Raise ToolError naming the first program that this machine lacks."""
    for program in ("slurmctld", "slurmd", "sinfo", "munged", "docker-registry", "ip", "nsenter"):
        if not shutil.which(program, path=ROOT_PATH):
            raise ToolError(f"cannot find the program {program}: run tools/packages first")
