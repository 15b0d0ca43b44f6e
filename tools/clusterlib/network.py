"""The bridge inside ctl and the wires to it: the machine's own network gets nothing."""

from __future__ import annotations

from typing import Mapping

from clusterlib.layout import BRIDGE, CONTROLLER, PREFIX, address
from clusterlib.processes import run_in_network


def connect(pids: Mapping[str, int]) -> None:
    """Wire all nodes, whose processes 1 are `pids`, to the bridge in ctl."""
    ip_batch(pids[CONTROLLER], controller_lines(pids))
    for node, pid in pids.items():
        if node != CONTROLLER:
            ip_batch(pid, node_lines(node))


def connect_node(pids: Mapping[str, int], node: str) -> None:
    """Wire one node that was not there when the others were."""
    ip_batch(pids[CONTROLLER], wire_lines(node, pids[node]))
    ip_batch(pids[node], node_lines(node))


def controller_lines(pids: Mapping[str, int]) -> list[str]:
    """What `ip -batch` does in ctl: the bridge, and a wire to each node."""
    lines = [
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"address add {address(CONTROLLER)}/{PREFIX} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]
    for node, pid in pids.items():
        if node != CONTROLLER:
            lines += wire_lines(node, pid)
    return lines


def wire_lines(node: str, pid: int) -> list[str]:
    """What `ip -batch` does in ctl for one node: a wire with its far end there.

    `netns NUMBER` names a namespace by a process as the caller sees it, so ip(8) must run in the
    network namespace of ctl but in our PID namespace.
    """
    return [
        f"link add {node} type veth peer name eth0 netns {pid}",
        f"link set {node} master {BRIDGE} up",
    ]


def node_lines(node: str) -> list[str]:
    """What `ip -batch` does in a compute node."""
    return [
        "link set lo up",
        f"address add {address(node)}/{PREFIX} dev eth0",
        "link set eth0 up",
    ]


def ip_batch(pid: int, lines: list[str]) -> None:
    """Run lines of ip(8) in the network namespace of `pid`."""
    run_in_network(pid, ["ip", "-batch", "-"], text="".join(f"{line}\n" for line in lines))
