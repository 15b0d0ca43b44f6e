"""HTCondor of Debian's next suite: ctl has collector, negotiator and schedd, each node a startd.

Bookworm has no HTCondor, so the nodes run trixie's packages over a tree that is made once.
"""

from __future__ import annotations

import os
from typing import Mapping

from clusterlib import roots, syscalls
from clusterlib.files import owner_ids, write, write_secret
from clusterlib.layout import CONTROLLER, Cluster, Share, address
from clusterlib.processes import run_in, wait_until
from clusterlib.services import JOBS_PATIENCE_S, PATIENCE_S, compute, on_each

TITLE = "HTCondor"
ROLES = ("condor_schedd and condor_collector", "condor_startd")
EXAMPLE = "condor_status"
PROGRAMS = ("condor_master", "condor_submit", "docker-registry")
SHARES = (Share("etc-condor", "/etc/condor/config.d"),)

PACKAGES = ("htcondor", *roots.NODE)
KEY = "/etc/condor/passwords.d/POOL"
CONFIGURATION = "10-pool.config"
NODE_CONFIGURATION = "/etc/condor/condor_config.local"
OWN_DIRECTORIES = (
    *("/run/condor", "/run/lock/condor", "/var/lib/condor", "/var/lib/condor/execute"),
    *("/var/spool/condor", "/var/log/condor"),
)

# The nodes share one machine: each offers many cores, so that 32 jobs fit one at a time.
# Without cgroups: their tree belongs to the machine.
POOL = """\
# A bare pool: no hpcwrap yet.  Edit, then run `tools/cluster restart`.
use SECURITY : recommended_v9_0
CONDOR_HOST = {controller}
UID_DOMAIN = hpcwrap
FILESYSTEM_DOMAIN = hpcwrap
DEFAULT_DOMAIN_NAME = hpcwrap
TRUST_UID_DOMAIN = True
ALLOW_ADMINISTRATOR = root@*, condor@*, condor_pool@*
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = condor@*, root@*, condor_pool@*
ALLOW_NEGOTIATOR = condor@*, root@*, condor_pool@*
ALLOW_ADVERTISE_MASTER = condor@*, root@*, condor_pool@*
ALLOW_ADVERTISE_STARTD = condor@*, root@*, condor_pool@*
ALLOW_ADVERTISE_SCHEDD = condor@*, root@*, condor_pool@*
LOCAL_CONFIG_FILE = {node_configuration}
SEC_PASSWORD_DIRECTORY = /etc/condor/passwords.d
NUM_CPUS = 41
MEMORY = 16000
BASE_CGROUP =
RUNBENCHMARKS = False
DISCARD_SESSION_KEYRING_ON_STARTUP = False
# As much memory as was asked for, to the MiB; nothing runs in the 1 MiB of who asks for none.
MODIFY_REQUEST_EXPR_REQUESTMEMORY = max({{RequestMemory, 32}})

# Jobs of the parallel universe have a static slot of each node: docs/htcondor.md says why.
SLOT_TYPE_1 = cpus=40, memory=15000
SLOT_TYPE_1_PARTITIONABLE = True
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_2 = cpus=1, memory=1000
NUM_SLOTS_TYPE_2 = 1
DedicatedScheduler = "DedicatedScheduler@{controller}.hpcwrap"
SLOT_TYPE_2_STARTD_ATTRS = DedicatedScheduler
START = (SlotTypeID =?= 2) == (Scheduler =?= $(DedicatedScheduler))
IS_OWNER = False

# Quick turns for tests.
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
CLAIM_WORKLIFE = 300
SHADOW_QUEUE_UPDATE_INTERVAL = 5
STARTER_INITIAL_UPDATE_INTERVAL = 1
"""
NODE = """\
DAEMON_LIST = {daemons}
NETWORK_INTERFACE = {address}
FULL_HOSTNAME = {node}
"""


def lower_root(_release: str) -> str:
    """A tree of trixie's packages."""
    return roots.ensure("htcondor-trixie", "trixie", PACKAGES)


def variables() -> Mapping[str, str]:
    """Nothing: the configuration is where HTCondor looks for it."""
    return {}


def make_state(cluster: Cluster) -> None:
    """The configuration, and the key by which daemons know each other."""
    text = POOL.format(controller=CONTROLLER, node_configuration=NODE_CONFIGURATION)
    write(cluster.path("etc-condor", CONFIGURATION), text)
    write_secret(cluster.path("pool.key"), os.urandom(256))


def prepare_node(cluster: Cluster, node: str, root: str) -> None:
    """Directories, the key, and what the node is for."""
    uid, gid = owner_ids(root, "condor")
    for directory in OWN_DIRECTORIES:
        os.makedirs(root + directory, 0o755, exist_ok=True)
        os.chown(root + directory, uid, gid)
    os.makedirs(root + os.path.dirname(KEY), 0o700, exist_ok=True)
    with open(cluster.path("pool.key"), "rb") as file:
        write_secret(root + KEY, file.read())
    if node != CONTROLLER:
        # sshd without privilege can give a terminal to nobody: it must be the group tty's already.
        terminals = "newinstance,gid=5,mode=620,ptmxmode=666"
        syscalls.mount("devpts", f"{root}/dev/pts", "devpts", syscalls.MS_NOSUID, terminals)
    daemons = "COLLECTOR NEGOTIATOR SCHEDD" if node == CONTROLLER else "STARTD"
    text = NODE.format(daemons=f"MASTER {daemons}", address=address(node), node=node)
    write(root + NODE_CONFIGURATION, text)


def begin(pids: Mapping[str, int]) -> None:
    """Nothing to do once."""


def start(pids: Mapping[str, int]) -> None:
    """Start the masters, which start the rest; wait until the collector knows every node."""
    on_each(pids.values(), lambda pid: run_in(pid, ["condor_master"]))
    expected = len(compute(pids))
    wait_until(
        lambda: answering_nodes(pids[CONTROLLER]) == expected and has_schedd(pids[CONTROLLER]),
        PATIENCE_S,
        "not all nodes reported to the collector (see /var/log/condor in ctl and in the nodes)",
    )


def stop(pids: Mapping[str, int]) -> None:
    """Wait until no job is left, then stop everything."""
    wait_until(
        lambda: not jobs(pids[CONTROLLER]),
        JOBS_PATIENCE_S,
        "the jobs in the queue did not end (see condor_q, and condor_rm those not wanted)",
    )
    on_each(pids.values(), _stop)


def _stop(pid: int) -> None:
    run_in(pid, ["condor_off", "-fast", "-master"], check=False)
    wait_until(
        lambda: not run_in(pid, ["pgrep", "-x", "condor_master"], check=False),
        PATIENCE_S,
        "condor_master did not stop",
    )


def has_schedd(controller: int) -> bool:
    """Whether jobs can be submitted."""
    return bool(run_in(controller, ["condor_status", "-schedd", "-af", "Name"], check=False))


def node_states(controller: int) -> dict[str, str]:
    """Node → the state of its first slot; empty when the collector does not answer."""
    text = run_in(
        controller,
        ["condor_status", "-af", "Machine", "State", "-const", 'SlotType != "Dynamic"'],
        check=False,
    )
    pairs = [line.split() for line in text.splitlines()]
    return {pair[0].partition(".")[0]: pair[1] for pair in pairs if len(pair) == 2}


def answering_nodes(controller: int) -> int:
    """How many nodes have reported."""
    return len(node_states(controller))


def jobs(controller: int) -> list[str]:
    """Jobs that are waiting or running."""
    words = ["condor_q", "-all", "-af", "ClusterId", "-const", "JobStatus != 5"]
    return run_in(controller, words, check=False).split()
