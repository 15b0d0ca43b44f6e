"""What a node has in /etc of its own, as text; and the cluster's slurm.conf."""

from __future__ import annotations

from typing import Iterable

from clusterlib.layout import (
    CONTROLLER,
    GROUPS,
    REGISTRY_PORT,
    REGISTRY_SHARE,
    SLURM_LOG_DIR,
    SLURMCTLD_PID_FILE,
    SLURMD_PID_FILE,
    USERS,
    Cluster,
    address,
)

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
MpiDefault=pmix
PrologFlags=Alloc
LaunchParameters=use_interactive_step
ReturnToService=2

# Quick turns for tests: schedule at once, say soon that a step has ended, forgive a busy machine.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
EpilogMsgTime=0
KillWait=5
MessageTimeout=30

NodeName={nodes} Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=containers Nodes=ALL MaxTime=INFINITE State=UP
"""

REGISTRY_CONFIG_TEMPLATE = """\
version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {directory}
  delete:
    enabled: true
http:
  addr: {address}:{port}
"""

REGISTRIES_CONF_TEMPLATE = """\
# The cluster's own registry speaks plain HTTP.
unqualified-search-registries = ["registry:{port}"]

[[registry]]
location = "registry:{port}"
insecure = true

[[registry]]
location = "{address}:{port}"
insecure = true
"""

POLICY_JSON = '{"default": [{"type": "insecureAcceptAnything"}]}\n'

# The C library asks 127.0.0.1 when no server is named; nobody listens there, so a look-up of an
# unknown name fails at once instead of waiting for a server that no route leads to.
RESOLV_CONF = "# No way leads out of this cluster: see /etc/hosts.\n"


def slurm_conf(cluster: Cluster) -> str:
    """The cluster's slurm.conf."""
    last = cluster.compute_names[-1][1:]
    return SLURM_CONF_TEMPLATE.format(
        controller=CONTROLLER,
        slurmctld_pid_file=SLURMCTLD_PID_FILE,
        slurmd_pid_file=SLURMD_PID_FILE,
        log_dir=SLURM_LOG_DIR,
        nodes="n1" if last == "1" else f"n[1-{last}]",
    )


def hosts(cluster: Cluster) -> str:
    """/etc/hosts with every node, and the name `registry` for the controller."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for node in cluster.names:
        names = f"{node} registry" if node == CONTROLLER else node
        lines.append(f"{address(node)} {names}")
    return "".join(f"{line}\n" for line in lines)


def passwd(lower: str) -> str:
    """The packages' /etc/passwd with the cluster's users in it."""
    ours = [f"{u.name}:*:{u.uid}:{u.uid}:{u.name}:{u.home}:/bin/bash" for u in USERS]
    return _merge(lower, ours)


def group(lower: str) -> str:
    """The packages' /etc/group with the cluster's groups in it."""
    ours = [f"{user.name}:x:{user.uid}:" for user in USERS]
    for name, gid in GROUPS.items():
        members = ",".join(user.name for user in USERS if name in user.groups)
        ours.append(f"{name}:x:{gid}:{members}")
    return _merge(lower, ours)


def _merge(lower: str, ours: list[str]) -> str:
    """Lines of a passwd-like file: ours, and those of `lower` with other names and numbers."""
    taken = {field for line in ours for field in _name_and_number(line)}
    kept = [line for line in lower.splitlines() if not taken & set(_name_and_number(line))]
    return "".join(f"{line}\n" for line in [*kept, *ours])


def _name_and_number(line: str) -> Iterable[str]:
    return [*line.split(":"), "", "", ""][0:3:2]


def texts(cluster: Cluster, node: str) -> dict[str, str]:
    """Path → text of every small file that this node has for itself."""
    where = {"address": address(CONTROLLER), "port": REGISTRY_PORT}
    files = {
        "/etc/hostname": f"{node}\n",
        "/etc/hosts": hosts(cluster),
        "/etc/resolv.conf": RESOLV_CONF,
        "/etc/containers/registries.conf": REGISTRIES_CONF_TEMPLATE.format(**where),
        "/etc/containers/policy.json": POLICY_JSON,
    }
    if node == CONTROLLER:
        files["/etc/docker/registry/config.yml"] = REGISTRY_CONFIG_TEMPLATE.format(
            directory=REGISTRY_SHARE.target, **where
        )
    return files
