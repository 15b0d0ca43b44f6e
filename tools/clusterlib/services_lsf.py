"""lim, res, sbatchd and mbatchd of volclava, or another LSF of its kind: files, start, stop.

Debian has none: $HPCWRAP_TEST_LSF names an installation, with bin and sbin in it.
"""

from __future__ import annotations

import os
from typing import Mapping

from clusterlib.errors import ToolError
from clusterlib.files import owner_ids, write
from clusterlib.layout import CONTROLLER, USER_PATH, Cluster, Share, address
from clusterlib.processes import run_in, start_in, wait_until
from clusterlib.services import JOBS_PATIENCE_S, PATIENCE_S, on_each

INSTALLATION = os.environ.get("HPCWRAP_TEST_LSF", "/opt/volclava")
TITLE = "LSF"
ROLES = ("mbatchd", "lim, res and sbatchd")
EXAMPLE = "bsub -K -o /dev/stdout hostname"
DAEMONS = ("lim", "res", "sbatchd")
PROGRAMS = tuple(f"{INSTALLATION}/sbin/{daemon}" for daemon in (*DAEMONS, "mbatchd"))
SHARES = (Share("lsf", "/var/lib/lsf"),)

CONFIGURATION = "/var/lib/lsf/conf"
WORK = "/var/lib/lsf/work"
LOG_DIR = "/var/log/lsf"
ADMINISTRATOR = "daemon"
CLUSTER_NAME = "hpcwrap"
SLOTS = 64

LSF_CONF = """\
# A bare cluster: no hpcwrap yet.
LSF_SERVERDIR={installation}/sbin
LSF_BINDIR={installation}/bin
LSF_ENVDIR={configuration}
LSF_CONFDIR={configuration}
LSB_CONFDIR={configuration}
LSB_SHAREDIR={work}
LSF_LOGDIR={log_dir}
LSF_LOG_MASK=LOG_INFO
LSF_LIM_PORT=6322
LSF_RES_PORT=6323
LSB_MBD_PORT=6324
LSB_SBD_PORT=6325
LSF_AUTH=eauth
LSB_MAILPROG=/bin/true
LSB_JOB_MEMLIMIT=Y
"""

LSF_SHARED = """\
Begin Cluster
ClusterName
{cluster}
End Cluster

Begin HostType
TYPENAME
linux
End HostType

Begin HostModel
MODELNAME CPUFACTOR ARCHITECTURE
any 1 (any)
End HostModel

Begin Resource
RESOURCENAME TYPE INTERVAL INCREASING DESCRIPTION
none Boolean () () (no resource of this cluster)
End Resource
"""

# Quick turns for tests: look each second, and start as many jobs at once as there are.
LSB_PARAMS = """\
Begin Parameters
DEFAULT_QUEUE = normal
MBD_SLEEP_TIME = 1
SBD_SLEEP_TIME = 1
JOB_ACCEPT_INTERVAL = 0
End Parameters
"""

LSB_QUEUES = """\
Begin Queue
QUEUE_NAME = normal
PRIORITY = 30
End Queue

Begin Queue
QUEUE_NAME = containers
PRIORITY = 30
End Queue
"""

LSB_USERS = """\
Begin UserGroup
GROUP_NAME GROUP_MEMBER
admins ({administrator})
End UserGroup
"""


def lower_root(_release: str) -> str:
    """The machine's own packages.  Raises ToolError where there is no LSF."""
    if not os.path.isdir(INSTALLATION):
        raise ToolError(
            f"cannot run LSF: there is no {INSTALLATION}: set HPCWRAP_TEST_LSF to an installation"
        )
    return "/"


def variables() -> Mapping[str, str]:
    """Where programs and configuration are."""
    return {
        "PATH": f"{INSTALLATION}/bin:{USER_PATH}:/usr/sbin:/sbin",
        "LSF_ENVDIR": CONFIGURATION,
        "LSF_SERVERDIR": f"{INSTALLATION}/sbin",
        "LSF_BINDIR": f"{INSTALLATION}/bin",
    }


def make_state(cluster: Cluster) -> None:
    """The configuration, and the directory that mbatchd keeps its jobs in."""
    for name, text in configuration(cluster).items():
        write(cluster.path("lsf", "conf", name), text)
    uid, gid = owner_ids(cluster.lower_root.rstrip("/"), ADMINISTRATOR)
    os.makedirs(cluster.path("lsf", "work", "logdir"), 0o755)
    for directory in ("lsf/work", "lsf/work/logdir"):
        os.chown(cluster.path(directory), uid, gid)


def configuration(cluster: Cluster) -> dict[str, str]:
    """Name → text of every file of the configuration."""
    return {
        "lsf.conf": LSF_CONF.format(
            installation=INSTALLATION, configuration=CONFIGURATION, work=WORK, log_dir=LOG_DIR
        ),
        "lsf.shared": LSF_SHARED.format(cluster=CLUSTER_NAME),
        f"lsf.cluster.{CLUSTER_NAME}": lsf_cluster(cluster),
        "lsf.task": "",
        "hosts": "".join(f"{address(node)} {node}\n" for node in cluster.names),
        "lsb.hosts": lsb_hosts(cluster),
        "lsb.params": LSB_PARAMS,
        "lsb.queues": LSB_QUEUES,
        "lsb.users": LSB_USERS.format(administrator=ADMINISTRATOR),
    }


def lsf_cluster(cluster: Cluster) -> str:
    """The administrator and the hosts; the first is the one that mbatchd runs on."""
    hosts = "".join(f"{node} any linux 1 - ()\n" for node in cluster.names)
    return (
        f"Begin ClusterAdmins\nAdministrators = {ADMINISTRATOR}\nEnd ClusterAdmins\n\n"
        f"Begin Host\nHOSTNAME model type server r1m RESOURCES\n{hosts}End Host\n"
    )


def lsb_hosts(cluster: Cluster) -> str:
    """Slots: none on ctl, and on the nodes more than the machine has processors."""
    slots = {node: 0 if node == CONTROLLER else SLOTS for node in cluster.names}
    lines = "".join(f"{node} {count} () () () () ()\n" for node, count in slots.items())
    return f"Begin Host\nHOST_NAME MXJ r1m pg ls tmp DISPATCH_WINDOW\n{lines}End Host\n"


def prepare_node(_cluster: Cluster, _node: str, root: str) -> None:
    """The daemons' log directory."""
    os.makedirs(root + LOG_DIR, 0o755, exist_ok=True)


def begin(_pids: Mapping[str, int]) -> None:
    """Nothing: all its daemons read the configuration anew."""


def start(pids: Mapping[str, int]) -> None:
    """Start the daemons of every node, ctl's first; wait until mbatchd has heard from all."""
    for pid in pids.values():
        start_daemons(pid)
    expected = len(pids) - 1
    wait_until(
        lambda: answering_nodes(pids[CONTROLLER]) == expected,
        PATIENCE_S,
        f"not all nodes reported to mbatchd (see {LOG_DIR} in ctl and in the nodes)",
    )


def start_daemons(pid: int) -> None:
    """Start a node's daemons with an environment of their own: mbatchd hands its on to jobs.

    Before a prolog sbatchd closes as many files as there may be, one by one, which takes 20 s
    where that is a thousand millions.
    """
    clean = ["env", "-i", f"LSF_ENVDIR={CONFIGURATION}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    for daemon in DAEMONS:
        program = f"{INSTALLATION}/sbin/{daemon}"
        argv = ["prlimit", "--nofile=1024:4096", "setsid", "--fork", *clean, program]
        start_in(pid, argv, f"{LOG_DIR}/{daemon}.out")


def stop(pids: Mapping[str, int]) -> None:
    """Wait until no job is left, then stop the daemons of every node."""
    controller = pids[CONTROLLER]
    wait_until(
        lambda: not jobs(controller),
        JOBS_PATIENCE_S,
        "the jobs in the queue did not end (see bjobs -u all, and bkill those not wanted)",
    )
    on_each(pids.values(), stop_daemons)


def stop_daemons(pid: int) -> None:
    """Stop a node's daemons; pim is lim's child and ends with it."""
    names = "|".join((*DAEMONS, "mbatchd", "pim"))
    # Processes of this PID namespace only, and those of this installation.
    run_in(pid, ["pkill", "--exact", "--", names], check=False)
    wait_until(
        lambda: not run_in(pid, ["pgrep", "--exact", "--", names], check=False),
        PATIENCE_S,
        "the daemons did not stop",
    )


def node_states(controller: int) -> dict[str, str]:
    """Node → what bhosts says of it; empty when mbatchd does not answer."""
    lines = run_in(controller, ["timeout", "10", "bhosts", "-w"], check=False).splitlines()
    states = {words[0]: words[1] for words in map(str.split, lines[1:]) if len(words) > 1}
    states.pop(CONTROLLER, None)
    return states


def answering_nodes(controller: int) -> int:
    """How many nodes have reported; a closed one has, unless lim is what is missing."""
    silent = ("unavail", "unreach", "closed_LIM")
    return sum(state not in silent for state in node_states(controller).values())


def jobs(controller: int) -> list[str]:
    """Lines of the jobs that mbatchd still has to run."""
    return run_in(controller, ["bjobs", "-u", "all"], check=False).splitlines()[1:]
