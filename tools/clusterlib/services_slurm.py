"""munged, slurmctld and slurmd: their files; start, stop, wait until they answer.

One release is this machine's own; the nodes run others over a tree of their suite's packages.
"""

from __future__ import annotations

import glob
import os
import shutil
from typing import Mapping

from clusterlib import roots
from clusterlib.files import owner_ids, write, write_secret
from clusterlib.layout import CONTROLLER, OWN_SLURM, SLURM_SUITES, Cluster, Share
from clusterlib.processes import run_in, wait_until
from clusterlib.services import JOBS_PATIENCE_S, PATIENCE_S, compute, on_each, stop_daemon

TITLE = "Slurm"
ROLES = ("slurmctld", "slurmd")
EXAMPLE = "srun -N2 hostname"
PROGRAMS = ("slurmctld", "slurmd", "sinfo", "munged")
SHARES = (Share("etc-slurm", "/etc/slurm"),)

# As this machine has them: Slurm and what its tests use, Open MPI and MPICH for `mpi: host`.
PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libslurm-dev", "munge"),
    *("slurmrestd", "musl-tools", "squashfs-tools-ng", "xz-utils", "bzip2", "openmpi-bin", "mpich"),
    *roots.NODE,
)

MUNGE_KEY = "/etc/munge/munge.key"
SLURM_CONF = "/etc/slurm/slurm.conf"
SLURMCTLD_PID_FILE = "/run/slurmctld.pid"
SLURMD_PID_FILE = "/run/slurmd.pid"
SLURM_LOG_DIR = "/var/log/slurm"
MUNGED = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"]

# config_overrides: the nodes report the machine's real cores; the cluster pretends to have eight
# on each node, so that a job of eight ranks fits one node of a small machine.
SLURM_CONF_TEMPLATE = """\
# A bare cluster: no hpcwrap yet.  Edit, then run `tools/cluster restart`.
ClusterName=hpcwrap
SlurmctldHost={controller}
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile={slurmctld_pid_file}
SlurmdPidFile={slurmd_pid_file}
SlurmctldLogFile={log_dir}/slurmctld.log
SlurmdLogFile={log_dir}/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info

# A cgroup tree belongs to the machine, and the nodes share one machine: job steps are tracked by
# their process tree, and nothing is written below /sys/fs/cgroup.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault={mpi}
PrologFlags=Alloc
LaunchParameters=use_interactive_step
ReturnToService=2

# Quick turns for tests: schedule at once (bf_: heterogeneous jobs, too), say soon that a step has
# ended, forgive a busy machine.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
EpilogMsgTime=0
KillWait=5
MessageTimeout=30

NodeName={nodes} Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=containers Nodes=ALL MaxTime=INFINITE State=UP
"""

# From 23.11 on slurmd makes a cgroup for itself, whatever the plugins are (cgroup.conf(5)).
CGROUP_CONF = "CgroupPlugin=disabled\n"


def lower_root(release: str) -> str:
    """The machine's own packages, or a tree of the suite that has the release."""
    if release == OWN_SLURM:
        return "/"
    return roots.ensure(f"slurm-{release}", SLURM_SUITES[release], PACKAGES)


def variables() -> Mapping[str, str]:
    """Where the configuration is."""
    return {"SLURM_CONF": SLURM_CONF}


def make_state(cluster: Cluster) -> None:
    """The configuration, and munge's secret."""
    write(cluster.path("etc-slurm", "slurm.conf"), slurm_conf(cluster))
    if cluster.lower_root != "/":
        write(cluster.path("etc-slurm", "cgroup.conf"), CGROUP_CONF)
    write_secret(cluster.path("munge.key"), os.urandom(1024))


def slurm_conf(cluster: Cluster) -> str:
    """The cluster's slurm.conf."""
    last = cluster.compute_names[-1][1:]
    pmix = glob.glob(f"{cluster.lower_root}/usr/lib/*/slurm-wlm/mpi_pmix.so")
    return SLURM_CONF_TEMPLATE.format(
        controller=CONTROLLER,
        slurmctld_pid_file=SLURMCTLD_PID_FILE,
        slurmd_pid_file=SLURMD_PID_FILE,
        log_dir=SLURM_LOG_DIR,
        # Debian's 26.05 was built without PMIx.
        mpi="pmix" if pmix else "pmi2",
        nodes="n1" if last == "1" else f"n[1-{last}]",
    )


def prepare_node(cluster: Cluster, _node: str, root: str) -> None:
    """Directories of Slurm's, and munge."""
    for directory in (SLURM_LOG_DIR, "/var/spool/slurmctld", "/var/spool/slurmd"):
        os.makedirs(root + directory, 0o755, exist_ok=True)
    prepare_munge(cluster, root)


def prepare_munge(cluster: Cluster, root: str) -> None:
    """The cluster's key and an empty /run/munge, owned as munged demands."""
    uid, gid = owner_ids(root, "munge")
    shutil.copyfile(cluster.path("munge.key"), root + MUNGE_KEY)
    os.chmod(root + MUNGE_KEY, 0o400)
    os.mkdir(root + "/run/munge", 0o755)
    for path in (MUNGE_KEY, "/run/munge"):
        os.chown(root + path, uid, gid)


def begin(pids: Mapping[str, int]) -> None:
    """munged on every node."""
    on_each(pids.values(), lambda pid: run_in(pid, MUNGED))


def start(pids: Mapping[str, int]) -> None:
    """Start slurmctld and all slurmd, and wait until slurmctld has heard from every node."""
    controller = pids[CONTROLLER]
    run_in(controller, ["slurmctld"])
    on_each(compute(pids).values(), lambda pid: run_in(pid, ["slurmd"]))
    expected = len(pids) - 1
    wait_until(
        lambda: answering_nodes(controller) == expected,
        PATIENCE_S,
        f"not all nodes reported to slurmctld (see {SLURM_LOG_DIR} in ctl and in the nodes)",
    )


def boot(pid: int) -> None:
    """What a node starts after a reboot: -b tells slurmctld, which ends the jobs that it had there.

    By itself slurmd asks the kernel for its uptime, and this machine has not been rebooted.
    """
    run_in(pid, MUNGED)
    run_in(pid, ["slurmd", "-b"])


def stop(pids: Mapping[str, int]) -> None:
    """Wait until no job is left, then stop slurmctld and all slurmd."""
    controller = pids[CONTROLLER]
    wait_until(
        lambda: not jobs(controller),
        JOBS_PATIENCE_S,
        "the jobs in the queue did not end (see squeue, and scancel those not wanted)",
    )
    stop_daemon(controller, SLURMCTLD_PID_FILE)
    on_each(compute(pids).values(), lambda pid: stop_daemon(pid, SLURMD_PID_FILE))


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
