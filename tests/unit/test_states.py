"""What schedulers say of jobs and nodes, as real ones have said it, in our words."""

from __future__ import annotations

import json
import os
import time
from typing import Callable, Dict, List, Optional

import pytest

from hpcwrap import run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
from hpcwrap.schedulers import (
    gridengine_status,
    htcondor_status,
    lsf_status,
    pbs_status,
    slurm_status,
    states,
)
from hpcwrap.schedulers.pbs_ifl import Status
from hpcwrap.schedulers.states import DOWN, DRAINED, UP, JobState, NodeState
from hpcwrap.verbs import status

PINNED = "busybox-1@sha256:" + 64 * "0"
Say = Callable[[Dict[str, str]], None]


@pytest.fixture(name="say")
def make_say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Have commands answer: the words of a command line, or the first of them → its output."""

    def say(answers: Dict[str, str]) -> None:
        def ask(name: str, words: List[str], *_directories: str) -> bytes:
            line = " ".join([name, *words])
            return next(text for key, text in answers.items() if line.startswith(key)).encode()

        for module in (gridengine_status, htcondor_status, lsf_status, slurm_status):
            monkeypatch.setattr(module, "ask", ask)
        monkeypatch.setattr(slurm_status, "load_pyslurm", lambda: None)

    return say


def at(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


# ---- Slurm ----

SLURM_JOB = {
    "job_id": 36,
    "job_state": "RUNNING",
    "state_reason": "None",
    "array_job_id": 0,
    "array_task_id": None,
    "admin_comment": f"hpcwrap={PINNED}",
    "nodes": "n[1-2]",
    "partition": "main",
    "start_time": 1795350654,
    "submit_time": 1795350652,
    "user_id": 2001,
    "user_name": "alice",
    "name": "wrap",
}
PENDING = {"job_state": "PENDING", "nodes": "", "admin_comment": "", "start_time": 1795354509}
ELEMENT = {"job_id": 39, "array_job_id": 38, "array_task_id": 2}
SLURM_24_05 = {
    "job_state": ["RUNNING", "CONFIGURING"],
    "array_job_id": {"set": True, "infinite": False, "number": 0},
    "array_task_id": {"set": False, "infinite": False, "number": 0},
    "start_time": {"set": True, "infinite": False, "number": 1795350654},
    "submit_time": {"set": True, "infinite": False, "number": 1795350652},
}


def slurm(**changes: object) -> List[JobState]:
    return [state for state in [slurm_status.make_job({**SLURM_JOB, **changes})] if state]


def test_a_job_of_slurm(say: Say) -> None:
    say({"squeue --json --all": json.dumps({"jobs": [SLURM_JOB]})})
    (job,) = slurm_status.read_jobs(Settings())
    assert job == JobState(
        "36", "alice", "running", PINNED, "main", ("n1", "n2"), 1795350654.0, "wrap"
    )
    assert slurm(**SLURM_24_05) == [job]


def test_jobs_of_slurm_before_and_after_they_run() -> None:
    (waiting,) = slurm(**PENDING)
    assert (waiting.state, waiting.since, waiting.container) == ("waiting", 1795350652.0, "")
    (held,) = slurm(**PENDING, state_reason="JobHeldUser")
    assert held.state == "held"
    (element,) = slurm(**ELEMENT)
    assert element.id == "38_2"
    assert slurm(job_state="COMPLETED") == slurm(job_state="FAILED") == []
    (unknown,) = slurm(user_name="", user_id=4200000)
    assert unknown.user == "4200000", "pyslurm gives numbers"


@pytest.mark.parametrize(
    ("node", "state"),
    [
        ({"state": "mixed", "state_flags": []}, UP),
        ({"state": "idle", "state_flags": ["DRAIN"]}, DRAINED),
        ({"state": "MIXED+DRAIN"}, DRAINED),
        ({"state": "IDLE+NOT_RESPONDING"}, DOWN),
        ({"state": ["DOWN", "DRAIN"]}, DOWN),
    ],
)
def test_a_node_of_slurm(node: Dict[str, object], state: str) -> None:
    (found,) = slurm_status.make_nodes({"name": "n1", "reason": "broken", **node})
    assert (found.name, found.state, found.reason) == ("n1", state, "broken")


def test_nodes_of_slurm_that_are_alike_have_one_entry() -> None:
    entry = {"nodes": {"nodes": ["n1", "n2"]}, "node": {"state": ["IDLE"]}, "reason": {}}
    assert list(slurm_status.make_nodes(entry)) == [
        NodeState("n1", UP, "idle"),
        NodeState("n2", UP, "idle"),
    ]


def test_squeue_without_its_json(say: Say) -> None:
    say({"squeue": "error: Unrecognized option"})
    with pytest.raises(SiteError, match="cannot read what squeue --json says"):
        slurm_status.read_jobs(Settings())


# ---- Grid Engine ----

QSTAT = """<?xml version='1.0'?>
<job_info><queue_info>
  <job_list state="running">
    <JB_job_number>12</JB_job_number><JB_name>t1</JB_name><JB_owner>alice</JB_owner>
    <state>r</state><JAT_start_time>2026-11-22T12:36:32</JAT_start_time>
    <queue_name>all.q@n1</queue_name><slots>1</slots>
  </job_list>
  <job_list state="running">
    <JB_job_number>12</JB_job_number><JB_name>t1</JB_name><JB_owner>alice</JB_owner>
    <state>r</state><JAT_start_time>2026-11-22T12:36:32</JAT_start_time>
    <queue_name>all.q@n2</queue_name><slots>1</slots>
  </job_list>
</queue_info><job_info>
  <job_list state="pending">
    <JB_job_number>13</JB_job_number><JB_name>STDIN</JB_name><JB_owner>alice</JB_owner>
    <state>hqw</state><JB_submission_time>2026-11-22T12:36:32</JB_submission_time>
    <queue_name></queue_name><slots>1</slots><tasks>2</tasks>
  </job_list>
</job_info></job_info>"""
QSTAT_J = f"""<detailed_job_info><djob_info><element>
  <JB_job_number>12</JB_job_number>
  <JB_mail_list><element><MR_user>alice</MR_user></element></JB_mail_list>
  <JB_context><context_list>
    <VA_variable>hpcwrap</VA_variable><VA_value>{PINNED}</VA_value>
  </context_list></JB_context>
</element></djob_info></detailed_job_info>"""
QUEUES = """<job_info><queue_info>
  <Queue-List><name>all.q@n1</name></Queue-List>
  <Queue-List><name>containers.q@n1</name><state>E</state><message>job 7 failed</message>
  </Queue-List>
  <Queue-List><name>all.q@n2</name><state>au</state></Queue-List>
</queue_info></job_info>"""


def test_jobs_and_nodes_of_grid_engine(say: Say) -> None:
    say({"qstat -u": QSTAT, "qstat -j": QSTAT_J, "qstat -f": QUEUES})
    since = at("2026-11-22 12:36:32")
    assert gridengine_status.read_jobs(Settings()) == [
        JobState("12", "alice", "running", PINNED, "all.q", ("n1", "n2"), since, "t1"),
        JobState("13.2", "alice", "held", "", "", (), since, "STDIN"),
    ]
    assert gridengine_status.read_nodes(Settings()) == [
        NodeState("n1", DRAINED, "containers.q E", "job 7 failed"),
        NodeState("n2", DOWN, "all.q au"),
    ]


# ---- PBS ----

PBS_JOB = {
    "Job_Name": "STDIN",
    "Job_Owner": "alice@ctl",
    "job_state": "R",
    "queue": "workq",
    "ctime": "1795350990",
    "stime": "1795350994",
    "exec_host": "n1/0*2+n2/0*2",
    "Resource_List.container": PINNED,
    "Resource_List.ncpus": "1",
}


def test_jobs_of_pbs() -> None:
    running = pbs_status.make_job(Status("28.ctl", PBS_JOB))
    assert running == JobState(
        "28.ctl", "alice", "running", PINNED, "workq", ("n1", "n2"), 1795350994.0, "STDIN"
    )
    variables = {"Resource_List.container": "", "Variable_List": "A=1,HPCWRAP_CONTAINER=cuda,B="}
    held = pbs_status.make_job(Status("30.ctl", {**PBS_JOB, "job_state": "H", **variables}))
    assert (held.state, held.container) == ("held", "cuda")


@pytest.mark.parametrize(
    ("word", "state"),
    [("free", UP), ("job-busy", UP), ("offline,job-busy", DRAINED), ("state-unknown,down", DOWN)],
)
def test_a_node_of_pbs(word: str, state: str) -> None:
    found = pbs_status.make_node(Status("n1", {"state": word, "comment": "a hook failed"}))
    assert found == NodeState("n1", state, word, "a hook failed")


# ---- LSF ----

BJOBS = {
    "JOBID": "9",
    "STAT": "RUN",
    "USER": "alice",
    "QUEUE": "normal",
    "EXEC_HOST": "n1:n1:n2",
    "SUBMIT_TIME": "Nov 22 12:35",
    "START_TIME": "11/22-12:35:09",
    "JOB_NAME": "suite[3]",
}
BHOSTS = """\
HOST_NAME          STATUS          JL/U    MAX  NJOBS    RUN  SSUSP  USUSP    RSV
ctl                closed_Full        -      0      0      0      0      0      0
n1                 ok                 -     64     44     44      0      0      0
n2                 closed_Adm         -     64     36     36      0      0      0
n3                 unreach            -     64     36     36      0      0      0
"""


def test_jobs_and_nodes_of_lsf(say: Say) -> None:
    waiting = {**BJOBS, "STAT": "PEND", "EXEC_HOST": "-", "START_TIME": "-", "JOB_NAME": "x"}
    ended = {**BJOBS, "STAT": "DONE"}
    say({"bjobs": json.dumps({"RECORDS": [BJOBS, waiting, ended]}), "bhosts": BHOSTS})
    first, second = lsf_status.read_jobs(Settings())
    assert (first.id, first.state, first.nodes) == ("9[3]", "running", ("n1", "n2"))
    assert time.strftime("%m-%d %H:%M:%S", time.localtime(first.since)) == "11-22 12:35:09"
    assert first.since < time.time() + 86400
    assert (second.id, second.state, second.nodes) == ("9", "waiting", ())
    found = [(node.name, node.state) for node in lsf_status.read_nodes(Settings())]
    assert found == [("n1", UP), ("n2", DRAINED), ("n3", DOWN)]


@pytest.mark.parametrize(("stderr", "known"), [("No unfinished job found\n", True), ("lim", False)])
def test_bjobs_fails_without_jobs(
    monkeypatch: pytest.MonkeyPatch, stderr: str, *, known: bool
) -> None:
    def ask(*words: object) -> bytes:
        raise run.CommandError(["bjobs"], 255, stderr)

    monkeypatch.setattr(lsf_status, "ask", ask)
    if known:
        assert lsf_status.read_jobs(Settings()) == []
        return
    with pytest.raises(run.CommandError):
        lsf_status.read_jobs(Settings())


# ---- HTCondor ----

CONDOR_JOB = {
    "ClusterId": 10,
    "ProcId": 0,
    "Owner": "alice",
    "JobStatus": 2,
    "RemoteHost": "slot1_1@n1.hpcwrap",
    "QDate": 1795350944,
    "JobCurrentStartDate": 1795350946,
    "Container": "debian-12",
    "Cmd": "/home/alice/where.sh",
}


def test_jobs_and_nodes_of_htcondor(say: Say) -> None:
    held = {"JobStatus": 5, "Container": None, "DockerImage": "ubuntu:24.04", "JobBatchName": "b"}
    jobs = [CONDOR_JOB, {**CONDOR_JOB, **held}, {**CONDOR_JOB, "JobStatus": 4}]
    nodes = [
        {"Machine": "n1.hpcwrap", "State": "Unclaimed", "SlotType": "Partitionable"},
        {"Machine": "n1.hpcwrap", "State": "Claimed", "SlotType": "Dynamic"},
        {"Machine": "n2.hpcwrap", "State": "Drained", "DrainReason": "disk"},
    ]
    say({"condor_q": json.dumps(jobs), "condor_status": json.dumps(nodes)})
    assert htcondor_status.read_jobs(Settings()) == [
        JobState("10.0", "alice", "running", "debian-12", "", ("n1",), 1795350946.0, "where.sh"),
        JobState("10.0", "alice", "held", "ubuntu:24.04", "", (), 1795350944.0, "b"),
    ]
    assert htcondor_status.read_nodes(Settings()) == [
        NodeState("n1", UP, "unclaimed"),
        NodeState("n2", DRAINED, "drained", "disk"),
    ]
    say({"condor_q": "\n"})
    assert htcondor_status.read_jobs(Settings()) == []


def test_a_host_without_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in states.READERS:
        monkeypatch.setattr(states.load(name), "is_here", lambda _settings: False)
    with pytest.raises(SiteError, match="cannot find the commands of any scheduler"):
        states.find(Settings())


@pytest.mark.parametrize(
    ("uid", "sudo", "shown"),
    [(0, None, "all"), (0, "root", "all"), (0, "alice", "alice"), (1, None, "daemon")],
)
def test_root_is_shown_all_jobs_and_others_their_own(
    monkeypatch: pytest.MonkeyPatch, uid: int, sudo: Optional[str], shown: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.delenv("SUDO_USER", raising=False)
    if sudo:
        monkeypatch.setenv("SUDO_USER", sudo)
    assert status.caller() == shown
