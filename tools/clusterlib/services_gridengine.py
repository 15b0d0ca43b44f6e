"""sge_qmaster and sge_execd: their files; start, stop, wait until they answer."""

from __future__ import annotations

import os
import shutil
from typing import Mapping
from xml.etree import ElementTree

from clusterlib.files import owner_ids, read, write
from clusterlib.layout import CONTROLLER, Cluster, Share
from clusterlib.processes import run_in, wait_until
from clusterlib.services import JOBS_PATIENCE_S, PATIENCE_S, compute, on_each, stop_daemon

TITLE = "Grid Engine"
ROLES = ("sge_qmaster", "sge_execd")
EXAMPLE = "qsub -sync y -b y hostname"
PROGRAMS = ("sge_qmaster", "sge_execd", "qconf", "qsub")
SHARES = (Share("etc-gridengine", "/var/lib/gridengine/default/common"),)

ADMIN = "sgeadmin"
SPOOL = "/var/spool/gridengine"
BOOTSTRAP = "/usr/share/gridengine/default-bootstrap"
CONFIGURATION = "/usr/share/gridengine/default-configuration"
INIT_CLUSTER = ["/usr/share/gridengine/scripts/init_cluster", "/var/lib/gridengine", "default"]
QMASTER_PID_FILE = SPOOL + "/qmaster/qmaster.pid"
EXECD_PID_FILE = SPOOL + "/execd/{node}/execd.pid"
FILES = "/root/gridengine"

# Jobs, prologs and filters inherit what the daemons are started with (sge_conf(5), INHERIT_ENV).
BARE = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]

# Quick turns for tests: schedule at once, and do not hold jobs back because the machine is busy.
SCHEDULER_CONF = """\
algorithm                         default
schedule_interval                 0:0:1
maxujobs                          0
queue_sort_method                 load
job_load_adjustments              NONE
load_adjustment_decay_time        0:7:30
load_formula                      slots
schedd_job_info                   true
flush_submit_sec                  1
flush_finish_sec                  1
params                            none
reprioritize_interval             0:0:0
halftime                          168
usage_weight_list                 cpu=1.000000,mem=0.000000,io=0.000000
compensation_factor               5.000000
weight_user                       0.250000
weight_project                    0.250000
weight_department                 0.250000
weight_job                        0.250000
weight_tickets_functional         0
weight_tickets_share              0
share_override_tickets            TRUE
share_functional_shares           TRUE
max_functional_jobs_to_schedule   200
report_pjob_tickets               TRUE
max_pending_tasks_per_job         50
halflife_decay_list               none
policy_hierarchy                  OFS
weight_ticket                     0.010000
weight_waiting_time               0.000000
weight_deadline                   3600000.000000
weight_urgency                    0.100000
weight_priority                   1.000000
max_reservation                   0
default_duration                  INFINITY
"""

QUEUE = """\
qname                 {name}
hostlist              @allhosts
seq_no                {number}
load_thresholds       NONE
suspend_thresholds    NONE
nsuspend              1
suspend_interval      00:05:00
priority              0
min_cpu_interval      00:05:00
processors            UNDEFINED
qtype                 BATCH INTERACTIVE
ckpt_list             NONE
pe_list               {parallel}
rerun                 FALSE
slots                 {slots}
tmpdir                /tmp
shell                 /bin/sh
prolog                NONE
epilog                NONE
shell_start_mode      unix_behavior
starter_method        NONE
suspend_method        NONE
resume_method         NONE
terminate_method      NONE
notify                00:00:60
owner_list            NONE
user_lists            NONE
xuser_lists           NONE
subordinate_list      NONE
complex_values        NONE
projects              NONE
xprojects             NONE
calendar              NONE
initial_state         default
s_rt                  INFINITY
h_rt                  INFINITY
s_cpu                 INFINITY
h_cpu                 INFINITY
s_fsize               INFINITY
h_fsize               INFINITY
s_data                INFINITY
h_data                INFINITY
s_stack               INFINITY
h_stack               INFINITY
s_core                INFINITY
h_core                INFINITY
s_rss                 INFINITY
h_rss                 INFINITY
s_vmem                INFINITY
h_vmem                INFINITY
"""

# qacct(1) is to know of a job as soon as qstat(1) does not.
FLUSHED = "accounting=true reporting=false flush_time=00:00:15 accounting_flush_time=00:00:00"

# 32 ranks fit a node.
SLOTS = 32
QUEUES = ("all.q", "containers.q")
RULES = {
    "mpi": "$round_robin",
    "fill": "$fill_up",
    "smp": "$pe_slots",
    **{f"by-{slots}": str(slots) for slots in (1, 2, 32)},
}

PARALLEL = """\
pe_name            {name}
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    {rule}
control_slaves     TRUE
job_is_first_task  FALSE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""

PROJECT = "name {name}\noticket 0\nfshare 0\nacl NONE\nxacl NONE\n"
PROJECTS = ("physics", "biology")


def lower_root(_release: str) -> str:
    """The machine's own packages."""
    return "/"


def variables() -> Mapping[str, str]:
    """Nothing: Debian's commands find the cell by themselves."""
    return {}


def make_state(cluster: Cluster) -> None:
    """The cell's common directory, which belongs to the admin user."""
    common = cluster.path(SHARES[0].source)
    shutil.copyfile(BOOTSTRAP, os.path.join(common, "bootstrap"))
    write(os.path.join(common, "act_qmaster"), CONTROLLER + "\n")
    for path in (common, *(os.path.join(common, name) for name in os.listdir(common))):
        os.chown(path, *owner_ids("/", ADMIN))


def prepare_node(cluster: Cluster, node: str, root: str) -> None:
    """Empty spool directories: the machine's own package may have made a cell of its own."""
    shutil.rmtree(root + SPOOL, ignore_errors=True)
    for directory in ("", "/qmaster", "/qmaster/job_scripts", "/spooldb", "/execd"):
        os.mkdir(root + SPOOL + directory, 0o755)
        os.chown(root + SPOOL + directory, *owner_ids(root, ADMIN))
    if node == CONTROLLER:
        for name, text in texts(cluster).items():
            write(f"{root}{FILES}/{name}", text)


def texts(cluster: Cluster) -> dict[str, str]:
    """What qconf is to read: name of the file → text."""
    hosts = " ".join(cluster.compute_names)
    files = {
        "sched": SCHEDULER_CONF,
        "global": configuration(),
        "hosts": f"group_name @allhosts\nhostlist {hosts}\n",
    }
    for name, rule in RULES.items():
        files[f"pe-{name}"] = PARALLEL.format(name=name, rule=rule)
    for number, name in enumerate(QUEUES):
        files[f"queue-{name}"] = QUEUE.format(
            name=name, number=number, slots=SLOTS, parallel=" ".join(RULES)
        )
    for name in PROJECTS:
        files[f"project-{name}"] = PROJECT.format(name=name)
    return files


def configuration() -> str:
    """Debian's own, with an accounting file that is not buffered."""
    kept = [line for line in read(CONFIGURATION).splitlines() if not line.startswith("reporting_")]
    return "".join(f"{line}\n" for line in [*kept, f"reporting_params {FLUSHED} joblog=false"])


def begin(pids: Mapping[str, int]) -> None:
    """A cell, from nothing to queues."""
    controller = pids[CONTROLLER]
    as_admin = ["setpriv", f"--reuid={ADMIN}", f"--regid={ADMIN}", "--clear-groups"]
    run_in(controller, [*as_admin, *INIT_CLUSTER, SPOOL + "/spooldb", ADMIN])
    start_qmaster(controller)
    qconf(controller, "-as", CONTROLLER)
    qconf(controller, "-ah", ",".join(compute(pids)))
    qconf(controller, "-as", ",".join(compute(pids)))
    for option, name in (("-Msconf", "sched"), ("-Mconf", "global"), ("-Ahgrp", "hosts")):
        qconf(controller, option, f"{FILES}/{name}")
    for option, kind, names in (
        ("-Ap", "pe", tuple(RULES)),
        ("-Aq", "queue", QUEUES),
        ("-Aprj", "project", PROJECTS),
    ):
        for name in names:
            qconf(controller, option, f"{FILES}/{kind}-{name}")


def qconf(controller: int, *words: str) -> str:
    """Run qconf in ctl, as root, who is a manager."""
    return run_in(controller, ["qconf", *words])


def start(pids: Mapping[str, int]) -> None:
    """Start what does not run yet, and wait until the qmaster has heard from every node."""
    controller = pids[CONTROLLER]
    if not answers(controller):
        start_qmaster(controller)
    on_each(compute(pids).values(), lambda pid: run_in(pid, [*BARE, "sge_execd"]))
    expected = len(pids) - 1
    wait_until(
        lambda: answering_nodes(controller) == expected,
        PATIENCE_S,
        f"not all nodes reported to sge_qmaster (see {SPOOL}/*/messages in ctl and in the nodes)",
    )


def start_qmaster(controller: int) -> None:
    """Start it and wait until it answers: it lets go of the terminal before it listens."""
    run_in(controller, [*BARE, "sge_qmaster"])
    wait_until(
        lambda: answers(controller),
        PATIENCE_S,
        f"sge_qmaster did not answer (see {SPOOL}/qmaster/messages in ctl)",
    )


def answers(controller: int) -> bool:
    """Whether the qmaster answers; the administrative hosts include its own."""
    return bool(run_in(controller, ["qconf", "-sh"], check=False).strip())


def stop(pids: Mapping[str, int]) -> None:
    """Wait until no job is left, then stop sge_qmaster and all sge_execd."""
    controller = pids[CONTROLLER]
    wait_until(
        lambda: not run_in(controller, ["qstat", "-u", "*"]).strip(),
        JOBS_PATIENCE_S,
        "the jobs in the queue did not end (see qstat -u '*', and qdel those not wanted)",
    )
    for node, pid in compute(pids).items():
        stop_daemon(pid, EXECD_PID_FILE.format(node=node))
    stop_daemon(controller, QMASTER_PID_FILE)


def node_states(controller: int) -> dict[str, str]:
    """Node → the states of its queues, as qstat(1) writes them, or idle for none."""
    text = run_in(controller, ["qstat", "-f", "-xml"], check=False)
    states: dict[str, str] = {}
    for queue in ElementTree.fromstring(text).iter("Queue-List") if text.strip() else ():
        node = (queue.findtext("name") or "").partition("@")[2]
        said = queue.findtext("state") or ""
        states[node] = "".join(sorted({*states.get(node, ""), *said}))
    return {node: said or "ready" for node, said in states.items()}


def answering_nodes(controller: int) -> int:
    """How many nodes have reported; `u` is unknown, `a` is that and more (qstat(1), -f)."""
    return sum("u" not in said for said in node_states(controller).values())
