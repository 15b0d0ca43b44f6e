"""up, down, restart and status: the story of a cluster."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import Any, Iterator, NamedTuple

from clusterlib import leftovers, network, services
from clusterlib.errors import ToolError
from clusterlib.files import write
from clusterlib.layout import (
    CONTROLLER,
    REGISTRY_SHARE,
    SHARES,
    USERS,
    Cluster,
    address,
)
from clusterlib.processes import INIT, holders, node_pid, wait_until

READY = "ready"
KILL_PATIENCE_S = 30
# Nobody else makes a directory with this in it: `down` removes no other directory.
MARK = "cluster.json"
# A state directory's path goes into the options of an overlay mount, where these separate words.
AWKWARD = set(':,\\" \n\t')


class NodeStatus(NamedTuple):
    """One line of `status`."""

    node: str
    address: str
    pid: int
    state: str


def up(cluster: Cluster) -> bool:
    """Bring the cluster up; False when it was up and healthy already."""
    check_fit(cluster)
    with locked(cluster.state):
        if is_healthy(cluster):
            return False
        remove(cluster.state)
        try:
            build(cluster)
        except (ToolError, OSError, KeyboardInterrupt):
            remove(cluster.state)
            raise
    return True


def down(state: str) -> bool:
    """Take the cluster down; False when there was nothing."""
    there = bool(holders(state)) or os.path.exists(state)
    if there:
        with locked(state):
            remove(state)
    return there


def restart(state: str) -> None:
    """Restart the scheduler's daemons once no job is left, as after a change of slurm.conf."""
    with locked(state):
        pids = node_pids(state)
        if not pids:
            raise ToolError(f"cannot restart: no cluster is up in {state}")
        scheduler = scheduler_of(state)
        scheduler.stop(pids)
        scheduler.start(pids)


def status(state: str) -> list[NodeStatus]:
    """What there is of the cluster in `state`: a line a node."""
    pids = node_pids(state)
    scheduler = scheduler_of(state)
    states = scheduler.node_states(pids[CONTROLLER]) if CONTROLLER in pids else {}
    said = {node: states.get(node, f"unknown to {scheduler.TITLE}") for node in pids}
    said[CONTROLLER] = f"{scheduler.ROLES[0]} {'answers' if states else 'does not answer'}"
    return [NodeStatus(node, address(node), pid, said[node]) for node, pid in pids.items()]


def scheduler_of(state: str) -> services.Scheduler:
    """The scheduler of the cluster in `state`."""
    return services.load(read_marks(state).get("scheduler", "slurm"))


def build(cluster: Cluster) -> None:
    """From nothing to idle nodes."""
    make_state(cluster)
    pids = start_nodes(cluster)
    write_marks(cluster, leftovers.own_devices(pids.values()))
    network.connect(pids)
    services.start_all(services.load(cluster.scheduler), pids)


def make_state(cluster: Cluster) -> None:
    """The directories that the nodes share, and what they find in them."""
    os.chmod(cluster.state, 0o755)
    write_marks(cluster, [])
    scheduler = services.load(cluster.scheduler)
    for share in (*SHARES, REGISTRY_SHARE, *scheduler.SHARES):
        os.makedirs(cluster.path(share.source), 0o755)
    for node in cluster.names:
        os.makedirs(cluster.node_dir(node), 0o755)
    for user in USERS:
        home = cluster.path(user.home.lstrip("/"))
        os.mkdir(home, 0o700)
        os.chown(home, user.uid, user.uid)
    scheduler.make_state(cluster)


def start_nodes(cluster: Cluster) -> dict[str, int]:
    """Start process 1 of every node, all at once; node → its process, as seen from here."""
    words = [cluster.state, str(cluster.compute_nodes), cluster.lower_root, cluster.scheduler]
    started = {}
    for node in cluster.names:
        started[node] = subprocess.Popen(
            ["/usr/bin/python3", "-I", INIT, *words, node],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
    for node, process in started.items():
        said = process.communicate()[0].strip()
        if said != READY:
            reason = said.splitlines()[-1] if said else "no message"
            raise ToolError(f"cannot build node {node}: {reason}")
    return {node: node_pid(cluster.state, node) for node in cluster.names}


def remove(state: str) -> None:
    """Kill all that holds the cluster and delete its files; any part may be missing.

    SIGKILL is right: process 1 of a PID namespace takes every process of the node with it, and
    mounts and network go with the last of them.
    """
    check_ours(state)
    loops = leftovers.loops_of(state, read_marks(state).get("devices", []))
    kill_holders(state)
    leftovers.detach(loops)
    wait_until(
        lambda: not set(loops) & set(leftovers.attached_loops()),
        KILL_PATIENCE_S,
        "the loop devices over the cluster's files were not let go",
    )
    delete_state(state)


def kill_holders(state: str) -> None:
    """Kill until there is none: one that is starting may have forked after we looked."""

    def none_left() -> bool:
        found = holders(state)
        for holder in found:
            with suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGKILL)
        return not found

    wait_until(none_left, KILL_PATIENCE_S, f"the nodes in {state} did not die")


def check_ours(state: str) -> None:
    """Raise ToolError unless the state directory is empty or a cluster's."""
    names = os.listdir(state)
    if names and not any(name.startswith(MARK) for name in names):
        raise ToolError(
            f"cannot use {state}: it is not empty and no cluster made it (choose another --state)"
        )


def delete_state(state: str) -> None:
    """Empty the state directory.

    The mark goes last: after a crash in here the next `down` still knows the directory as ours.
    """
    for name in sorted(os.listdir(state), key=lambda name: name.startswith(MARK)):
        path = os.path.join(state, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def is_healthy(cluster: Cluster) -> bool:
    """Whether a whole cluster is up: every node answers, a drained one too, and the registry.

    Raises ToolError when a healthy one of another size or with another scheduler is up.
    """
    pids = node_pids(cluster.state)
    compute_nodes = len(pids) - 1
    if CONTROLLER not in pids or not services.registry_listens(pids[CONTROLLER]):
        return False
    if compute_nodes != read_marks(cluster.state).get("compute_nodes"):
        return False
    scheduler = scheduler_of(cluster.state)
    if scheduler.answering_nodes(pids[CONTROLLER]) != compute_nodes:
        return False
    wanted = services.load(cluster.scheduler)
    root = read_marks(cluster.state).get("lower_root", cluster.lower_root)
    if (compute_nodes, scheduler, root) != (cluster.compute_nodes, wanted, cluster.lower_root):
        raise ToolError(
            f"cannot bring up {cluster.compute_nodes} nodes of {wanted.TITLE}: a cluster of "
            f"{compute_nodes} of {scheduler.TITLE} over {root} is up in {cluster.state} (take it "
            "down first: tools/cluster down)"
        )
    return True


def write_marks(cluster: Cluster, devices: list[int]) -> None:
    """Note what cannot be seen once the nodes are dead; published by rename."""
    marks = {
        "compute_nodes": cluster.compute_nodes,
        "scheduler": cluster.scheduler,
        "lower_root": cluster.lower_root,
        "devices": devices,
    }
    _publish_marks(cluster.state, marks)


def note_devices(state: str, devices: list[int]) -> None:
    """Note the devices anew, after a node's have changed."""
    _publish_marks(state, {**read_marks(state), "devices": devices})


def _publish_marks(state: str, marks: dict[str, Any]) -> None:
    path = os.path.join(state, MARK)
    write(f"{path}.new", json.dumps(marks) + "\n")
    os.rename(f"{path}.new", path)


def read_marks(state: str) -> dict[str, Any]:
    """What was noted; empty when nothing was."""
    try:
        with open(os.path.join(state, MARK), encoding="utf-8") as file:
            marks: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {}
    return marks


def node_pids(state: str) -> dict[str, int]:
    """Node → its process 1, the controller first."""
    inside = [(holder.node, holder.pid) for holder in holders(state) if holder.inside]
    return dict(sorted(inside, key=lambda pair: (pair[0] != CONTROLLER, len(pair[0]), pair[0])))


def check_fit(cluster: Cluster) -> None:
    """Raise ToolError when this machine or this state directory cannot carry a cluster."""
    services.check_programs(services.load(cluster.scheduler), cluster.lower_root)
    if AWKWARD & set(cluster.state):
        raise ToolError(f"cannot use {cluster.state!r}: no spaces, commas, colons or quotes")
    root = os.stat(cluster.lower_root).st_dev
    for directory in ("etc", "usr", "var"):
        if os.stat(os.path.join(cluster.lower_root, directory)).st_dev != root:
            raise ToolError(
                f"cannot build nodes: /{directory} is a file system of its own, and a node's root "
                "is an overlay over one file system"
            )


@contextmanager
def locked(state: str) -> Iterator[None]:
    """Hold the cluster's lock: the state directory itself, made if need be, removed if left empty.

    A lock file would be one more thing to leave behind.
    """
    fd = _lock(state)
    try:
        yield
    finally:
        with suppress(OSError):
            os.rmdir(state)
        os.close(fd)


def _lock(state: str) -> int:
    while True:
        os.makedirs(state, 0o755, exist_ok=True)
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Whoever held the lock before us may have removed the directory that we have just locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(state)):
                return fd
        os.close(fd)
        time.sleep(0.01)
