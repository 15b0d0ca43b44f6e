"""OpenPBS, which is not Debian's: $HPCWRAP_TEST_PBS says where it is installed."""

from __future__ import annotations

import json
import os
from typing import Any, Mapping

from clusterlib.files import owner_ids, write
from clusterlib.layout import CONTROLLER, Cluster, Share
from clusterlib.processes import run_in, wait_until
from clusterlib.services import JOBS_PATIENCE_S, PATIENCE_S, compute, on_each

INSTALLATION = os.environ.get("HPCWRAP_TEST_PBS", "/opt/pbs")
HOME = "/var/spool/pbs"

TITLE = "OpenPBS"
ROLES = ("pbs_server, pbs_sched, pbs_comm", "pbs_mom")
EXAMPLE = "qsub -l select=2 -- /opt/pbs/bin/pbsdsh /bin/hostname"
PROGRAMS = tuple(f"{INSTALLATION}/sbin/{name}" for name in ("pbs_server.bin", "pbs_mom"))
SHARES: tuple[Share, ...] = ()

INIT = f"{INSTALLATION}/libexec/pbs_init.d"

CONF = """\
PBS_SERVER={controller}
PBS_EXEC={installation}
PBS_HOME={home}
PBS_START_SERVER={server}
PBS_START_SCHED={server}
PBS_START_COMM={server}
PBS_START_MOM={mom}
PBS_CORE_LIMIT=unlimited
"""

# Without usecp output goes home by scp, and no node has an sshd.
MOM_CONFIG = """\
$usecp *:/home/ /home/
$usecp *:/shared/ /shared/
"""

# The nodes report the machine's real cores; the cluster pretends to have eight on each node, so
# that a job of eight ranks fits one node of a small machine.
NODE = """\
create node {name}
set node {name} resources_available.ncpus = 8
set node {name} resources_available.mem = 8gb
"""
SERVER = """\
set server job_history_enable = True
set server scheduler_iteration = 5
set server acl_roots += root@*
create queue containers
set queue containers queue_type = Execution
set queue containers enabled = True
set queue containers started = True
"""


def lower_root(_release: str) -> str:
    """The machine's own packages; OpenPBS lies beside them."""
    return "/"


def variables() -> Mapping[str, str]:
    """Nothing: /etc/pbs.conf says it all."""
    return {}


def make_state(_cluster: Cluster) -> None:
    """Nothing is shared."""


def prepare_node(_cluster: Cluster, node: str, root: str) -> None:
    """The configuration, and the commands where a login finds them."""
    os.makedirs(root + HOME)
    # Where Debian's PostgreSQL makes its socket; else its package's start-up makes the directory.
    os.makedirs(f"{root}/run/postgresql")
    os.chown(f"{root}/run/postgresql", *owner_ids(root, "postgres"))
    server = int(node == CONTROLLER)
    conf = CONF.format(
        controller=CONTROLLER, installation=INSTALLATION, home=HOME, server=server, mom=1 - server
    )
    write(f"{root}/etc/pbs.conf", conf)
    os.makedirs(f"{root}/usr/local/bin", exist_ok=True)
    for name in os.listdir(f"{INSTALLATION}/bin"):
        link = f"{root}/usr/local/bin/{name}"
        if not os.path.lexists(link):
            os.symlink(f"{INSTALLATION}/bin/{name}", link)


def begin(pids: Mapping[str, int]) -> None:
    """Make the server's data store, a queue and the nodes; start the nodes to make their homes."""
    controller = pids[CONTROLLER]
    run_in(controller, [INIT, "start"])
    nodes = "".join(NODE.format(name=name) for name in compute(pids))
    for line in (SERVER + nodes).splitlines():
        run_in(controller, [f"{INSTALLATION}/bin/qmgr", "-c", line])
    on_each(compute(pids).values(), make_mom)


def make_mom(pid: int) -> None:
    """The directories of a MoM, and its configuration."""
    run_in(pid, [f"{INSTALLATION}/libexec/pbs_habitat"])
    write(f"/proc/{pid}/root{HOME}/mom_priv/config", MOM_CONFIG)


def start(pids: Mapping[str, int]) -> None:
    """Start all daemons that do not run, and wait until the server has heard from every node."""
    on_each(pids.values(), lambda pid: run_in(pid, [INIT, "start"]))
    expected = len(pids) - 1
    wait_until(
        lambda: answering_nodes(pids[CONTROLLER]) == expected,
        PATIENCE_S,
        f"not all nodes reported to pbs_server (see {HOME}/server_logs in ctl, mom_logs in nodes)",
    )


def stop(pids: Mapping[str, int]) -> None:
    """Wait until no job is left, then stop all daemons."""
    wait_until(
        lambda: not jobs(pids[CONTROLLER]),
        JOBS_PATIENCE_S,
        "the jobs in the queue did not end (see qstat, and qdel those not wanted)",
    )
    on_each(pids.values(), lambda pid: run_in(pid, [INIT, "stop"]))


def node_states(controller: int) -> dict[str, str]:
    """Node → what pbsnodes says of it; empty when pbs_server does not answer."""
    command = [f"{INSTALLATION}/bin/pbsnodes", "-a", "-F", "json"]
    text = run_in(controller, command, check=False)
    nodes: dict[str, Any] = json.loads(text).get("nodes", {}) if text.startswith("{") else {}
    return {name: str(node["state"]) for name, node in nodes.items()}


def answering_nodes(controller: int) -> int:
    """How many nodes have reported; one that is offline counts."""
    silent = ("down", "unknown")
    states = node_states(controller).values()
    return sum(1 for state in states if not any(word in state for word in silent))


def jobs(controller: int) -> list[str]:
    """Ids of the jobs that the server still has to run or to clean up after."""
    return run_in(controller, [f"{INSTALLATION}/bin/qselect"]).split()
