"""What a cluster is made of, as plain data: nodes, addresses, users, paths."""

from __future__ import annotations

import os
from typing import NamedTuple

DEFAULT_STATE = "/var/tmp/hpcwrap-cluster"
DEFAULT_NODES = 2
MAX_NODES = 64

CONTROLLER = "ctl"
BRIDGE = "br0"
NETWORK = "10.77.0."
PREFIX = 24
REGISTRY_PORT = 5000

SCHEDULERS = ("slurm", "gridengine", "htcondor", "pbs", "lsf")

SLURM_SUITES = {"22.05": "bookworm", "24.11": "trixie", "26.05": "sid"}
"""Releases of Slurm, and the suite of Debian that has each; the first is this machine's own."""
OWN_SLURM = "22.05"

ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"


class User(NamedTuple):
    """An ordinary user of the cluster; the group of the same name has the same number."""

    name: str
    uid: int
    groups: tuple[str, ...]

    @property
    def home(self) -> str:
        """The home directory, as every node sees it."""
        return f"/home/{self.name}"

    @property
    def gids(self) -> list[int]:
        """The user's own group and the supplementary ones."""
        return [self.uid, *(GROUPS[group] for group in self.groups)]


GROUPS = {"research": 3001, "gpu": 3002}
USERS = (User("alice", 2001, ("research", "gpu")), User("bob", 2002, ("research",)))


class Share(NamedTuple):
    """A directory that all nodes see: `source` below the state directory, `target` in a node."""

    source: str
    target: str


SHARES = (
    Share("home", "/home"),
    Share("opt", "/opt/hpcwrap"),
    Share("shared", "/shared"),
)
REGISTRY_SHARE = Share("registry", "/var/lib/docker-registry")


class Cluster(NamedTuple):
    """One cluster: where it keeps its files, how many compute nodes, over which packages.

    `lower_root` is the tree whose packages the nodes run: the host's own, or a chroot of another
    suite.
    """

    state: str
    compute_nodes: int
    lower_root: str = "/"
    scheduler: str = "slurm"

    @property
    def names(self) -> list[str]:
        """All nodes, the controller first."""
        return [CONTROLLER, *self.compute_names]

    @property
    def compute_names(self) -> list[str]:
        """The nodes that run jobs."""
        return [f"n{number}" for number in range(1, self.compute_nodes + 1)]

    def path(self, *parts: str) -> str:
        """A path below the state directory."""
        return os.path.join(self.state, *parts)

    def node_dir(self, node: str) -> str:
        """The empty directory on which a node mounts its own root while it is being built."""
        return self.path("nodes", node)


def address(node: str) -> str:
    """The node's IPv4 address: ctl is .1, n1 is .11."""
    return NETWORK + ("1" if node == CONTROLLER else str(10 + int(node[1:])))


def shares_of(node: str) -> list[Share]:
    """The directories of the state that this node sees."""
    return [*SHARES, REGISTRY_SHARE] if node == CONTROLLER else list(SHARES)
