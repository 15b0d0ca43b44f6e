"""reboot: a node loses its power, and comes up again as one without a disk does.

All that it had for itself is gone, /etc and /var included: a program of the caller's sets it up
before the scheduler's daemon starts, as a site's provisioning does.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
from contextlib import suppress
from typing import Mapping, Optional, Sequence

from clusterlib import leftovers, lifecycle, network, services_slurm
from clusterlib.errors import ToolError
from clusterlib.files import read
from clusterlib.layout import CONTROLLER
from clusterlib.processes import command_line, node_pid, run_in, wait_until
from clusterlib.services import PATIENCE_S


def reboot(state: str, node: str, provision: Sequence[str]) -> None:
    """Take one compute node down and up; `provision` runs in it before slurmd, may be empty."""
    with lifecycle.locked(state):
        check(state, node)
        old = node_pid(state, node)
        words = command_line(old)
        switch_off(old)
        remove_cgroups(node)
        pids = lifecycle.node_pids(state)
        wait_for_the_wire(pids[CONTROLLER], node)
        pids[node] = switch_on(state, node, words)
        lifecycle.note_devices(state, leftovers.own_devices(pids.values()))
        network.connect_node(pids, node)
        if provision:
            run_in(pids[node], provision)
        services_slurm.boot(pids[node])
        wait_for_the_node(pids, node)


def check(state: str, node: str) -> None:
    """Raise ToolError for what cannot be rebooted."""
    if node == CONTROLLER:
        raise ToolError(f"cannot reboot {node}: the network and the registry are in it")
    if lifecycle.scheduler_of(state).TITLE != services_slurm.TITLE:
        raise ToolError(f"cannot reboot {node}: only nodes of {services_slurm.TITLE} can be so far")


def switch_off(pid: int) -> None:
    """Kill process 1, and with it all of the node; wait until the kernel has buried them.

    Its command line goes before its processes do: a zombie has none left (pid_namespaces(7)).
    """
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state_of(pid) in ("", "Z"), PATIENCE_S, f"process {pid} did not end")


def remove_cgroups(node: str) -> None:
    """Remove Slurm's of a node that is dead: they are the machine's, and a boot would end them.

    They stay busy until the kernel has buried the last of the node's processes.
    """
    tops = glob.glob(f"/sys/fs/cgroup/*/slurm_{node}")

    def are_gone() -> bool:
        with suppress(OSError):
            for directory, _, _ in (each for top in tops for each in os.walk(top, topdown=False)):
                os.rmdir(directory)
            return True
        return False

    wait_until(are_gone, PATIENCE_S, f"the cgroups of the dead {node} stayed")


def state_of(pid: int) -> str:
    """The state of a process, one letter of proc_pid_stat(5); empty for one that is gone."""
    try:
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for_the_wire(controller: int, node: str) -> None:
    """The kernel takes a dead network namespace's devices down a moment later."""

    def is_gone() -> bool:
        return f" {node}:" not in f" {read(f'/proc/{controller}/net/dev')}"

    wait_until(is_gone, PATIENCE_S, f"the wire to the dead {node} stayed")


def switch_on(state: str, node: str, words: Sequence[str]) -> int:
    """Start process 1 anew with the words of the old one; its number."""
    done = subprocess.run(
        ["/usr/bin/python3", *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        check=False,
    )
    if done.stdout.strip() != lifecycle.READY:
        raise ToolError(f"cannot build node {node}: {done.stdout.strip() or 'no message'}")
    return node_pid(state, node)


def wait_for_the_node(pids: Mapping[str, int], node: str) -> None:
    """Until slurmctld has heard of it; drained counts."""

    def answers() -> bool:
        said: Optional[str] = services_slurm.node_states(pids[CONTROLLER]).get(node)
        return said is not None and not said.endswith("*") and said not in ("unknown", "down")

    wait_until(answers, PATIENCE_S, f"{node} did not report to slurmctld")
