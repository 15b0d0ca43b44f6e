"""What all clusters run, the registry, and what each scheduler's module has to bring."""

from __future__ import annotations

import importlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, Mapping, Protocol, cast

from clusterlib.errors import ToolError
from clusterlib.layout import CONTROLLER, REGISTRY_PORT, ROOT_PATH, Cluster, Share, address
from clusterlib.processes import run_in, start_in, wait_until

# All is up after a second or two; this is for a machine that is busy with other things.
PATIENCE_S = 60
# How long `restart` waits for the jobs that are there.
JOBS_PATIENCE_S = 60

PROGRAMS = ("docker-registry", "ip", "nsenter")
REGISTRY = ["setsid", "--fork", "docker-registry", "serve", "/etc/docker/registry/config.yml"]
REGISTRY_LOG = "/var/log/docker-registry.log"
TCP_LISTEN = "0A"


class Scheduler(Protocol):
    """A scheduler's module, services_NAME.py, as functions and constants of these names.

    They are called in this order: make_state, once; prepare_node in each node, before it has the
    network; begin, once; start; and stop and start again for `restart`.
    """

    TITLE: str
    """Its name as people write it."""

    ROLES: tuple[str, str]
    """What runs on ctl and what on the nodes, in words."""

    EXAMPLE: str
    """A command of a user's that shows that it works."""

    PROGRAMS: tuple[str, ...]
    """What must be installed in the nodes' root: names of programs, or paths."""

    SHARES: tuple[Share, ...]
    """The directories that its nodes share beside those of every cluster."""

    def lower_root(self, release: str, /) -> str:
        """The tree whose packages the nodes run: /, or a chroot that is made if need be.

        `release` is what `tools/cluster up --slurm` says, and Slurm's alone.
        """

    def variables(self) -> Mapping[str, str]:
        """What a login has in its environment."""

    def make_state(self, cluster: Cluster) -> None:
        """Write its files into the state directory; those of SHARES are there already."""

    def prepare_node(self, cluster: Cluster, node: str, root: str) -> None:
        """Write what a node has for itself; `root` is where the node's root is being built."""

    def begin(self, pids: Mapping[str, int]) -> None:
        """Do once, in nodes that are up, what `restart` is not to do again; node → process 1."""

    def start(self, pids: Mapping[str, int]) -> None:
        """Start its daemons and wait until every node has reported."""

    def stop(self, pids: Mapping[str, int]) -> None:
        """Wait until no job is left, then stop its daemons."""

    def node_states(self, controller: int) -> dict[str, str]:
        """Node → what the scheduler says of it; empty when it does not answer."""

    def answering_nodes(self, controller: int) -> int:
        """How many nodes have reported; a drained one counts."""


def load(name: str) -> Scheduler:
    """The module of a scheduler.  Raises ToolError when there is none."""
    try:
        return cast(Scheduler, importlib.import_module(f"clusterlib.services_{name}"))
    except ModuleNotFoundError as error:
        if error.name != f"clusterlib.services_{name}":
            raise
    raise ToolError(f"cannot run {name}: there is no services_{name}.py beside {__file__}")


def start_all(scheduler: Scheduler, pids: Mapping[str, int]) -> None:
    """Start every daemon of every node and wait until all answer."""
    start_in(pids[CONTROLLER], REGISTRY, REGISTRY_LOG)
    scheduler.begin(pids)
    scheduler.start(pids)
    wait_until(lambda: registry_listens(pids[CONTROLLER]), PATIENCE_S, "the registry did not start")


def registry_listens(controller: int) -> bool:
    """Whether ctl's network namespace has the registry's socket (/proc/net/tcp, proc(5))."""
    octets = [int(part) for part in address(CONTROLLER).split(".")]
    where = "".join(f"{octet:02X}" for octet in reversed(octets)) + f":{REGISTRY_PORT:04X}"
    with open(f"/proc/{controller}/net/tcp", encoding="ascii") as file:
        sockets = [line.split()[1:4] for line in file]
    return any(local == where and state == TCP_LISTEN for local, _, state in sockets[1:])


def compute(pids: Mapping[str, int]) -> dict[str, int]:
    """The nodes that run jobs → their process 1."""
    return {node: pid for node, pid in pids.items() if node != CONTROLLER}


def on_each(pids: Iterable[int], action: Callable[[int], object]) -> None:
    """Do the same in several nodes at once; the first failure is raised."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(action, pids))


def stop_daemon(pid: int, pid_file: str) -> None:
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


def check_programs(scheduler: Scheduler, lower_root: str) -> None:
    """Raise ToolError naming the first program that this machine, or the nodes' root, lacks."""
    for program in PROGRAMS:
        if not shutil.which(program, path=ROOT_PATH):
            raise ToolError(f"cannot find the program {program}: run tools/packages first")
    path = ":".join(lower_root.rstrip("/") + place for place in ROOT_PATH.split(":"))
    for program in scheduler.PROGRAMS:
        absolute = lower_root.rstrip("/") + program if program.startswith("/") else program
        if not shutil.which(absolute, path=path):
            raise ToolError(f"cannot find the program {program}: run tools/packages first")
