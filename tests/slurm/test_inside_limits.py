"""A job's limits as programs inside see them, under task/cgroup on cgroup v1 (v2: tests/vm)."""

from __future__ import annotations

import ast
import re
from typing import Any, Dict, Iterator, List

import pytest
from site_tools import REPOSITORY, Job, Site
from slurm_conf import script, switched_on
from step_tools import ends_late

pytestmark = pytest.mark.slurm

CONF = (
    "ProctrackType=proctrack/cgroup",
    "TaskPlugin=task/cgroup,task/affinity",
    "JobAcctGatherType=jobacct_gather/cgroup",
    "SelectTypeParameters=CR_Core_Memory",
)
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainDevices=yes
"""
MEMORY = 200 << 20
OPENMP = REPOSITORY / "tests" / "openmp.c"

# As a JVM does it (HotSpot, cgroupSubsystem_linux.cpp): the hierarchy's mount from mountinfo, the
# first below /sys/fs/cgroup before all others; in it the own cgroup, by a root that is / or the
# very cgroup; there the limit, or that of those above.
AS_A_JVM = """
import os
mounts = {}
for line in open("/proc/self/mountinfo"):
    left, _, right = line.partition(" - ")
    if right.split()[0] == "cgroup":
        root, mount = left.split()[3:5]
        for name in right.split()[-1].split(","):
            old = mounts.get(name, ("", ""))[1]
            if not old.startswith("/sys/fs/cgroup"):
                mounts[name] = (root, mount)
own = {name: path for line in open("/proc/self/cgroup").read().splitlines()
       for _, names, path in [line.split(":", 2)] for name in names.split(",")}
def find(name):
    root, mount = mounts[name]
    return mount + own[name] if root == "/" else mount if root == own[name] else None
def read(path):
    return open(path).read()
def limit(directory):
    found = int(read(directory + "/memory.limit_in_bytes"))
    words = dict(line.split() for line in read(directory + "/memory.stat").splitlines())
    return min(found, int(words["hierarchical_memory_limit"]))
def direct(path):
    return read("/sys/fs/cgroup/" + path).strip()
print(repr({
    "jvm memory": limit(find("memory")),
    "jvm cpus": read(find("cpuset") + "/cpuset.cpus").strip(),
    "memory": int(direct("memory/memory.limit_in_bytes")),
    "cpus": direct("cpuset/cpuset.cpus"),
    "affinity": sorted(os.sched_getaffinity(0)),
    "own": own,
}))
"""


@pytest.fixture(scope="module", autouse=True)
def cgroups(site: Site) -> Iterator[None]:
    """Slurm holds jobs to what they got, by the machine's own cgroups."""
    site.need("cluster", "as", "alice", "tee", "as-a-jvm.py", stdin=AS_A_JVM)
    with switched_on(site, CONF, {"cgroup.conf": CGROUP_CONF}):
        yield


READ = "python3 as-a-jvm.py"


def seen(text: str) -> List[Dict[str, Any]]:
    """The documents that the readers printed."""
    return [ast.literal_eval(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module", name="job")
def a_job(site: Site) -> Job:
    """A script and two steps, the second with less memory, outside nothing is left to have."""
    text = f"#!/bin/sh\n{READ}\nsrun {READ}\nsrun -n2 --mem=100 {READ}\n"
    return site.batch(text, "--container=debian-12", "-n2", "-N1", f"--mem={MEMORY >> 20}")


def test_the_files_are_the_jobs(job: Job) -> None:
    documents = seen(job.output)
    assert len(documents) == 5, job.output
    assert {each["memory"] for each in documents} == {MEMORY}
    assert len({each["cpus"] for each in documents}) == 1


def test_a_jvm_finds_the_least_of_its_limits(job: Job) -> None:
    found = [each["jvm memory"] for each in seen(job.output)]
    assert found == [MEMORY] * 3 + [100 << 20] * 2


def test_processes_are_in_the_jobs_cgroup_and_in_none_of_ours(site: Site, job: Job) -> None:
    for document in seen(job.output):
        for controller in ("memory", "cpuset", "freezer", "devices"):
            path = document["own"][controller]
            assert re.search(rf"/uid_2001/job_{job.id}/step_(batch|\d)(/task_\d)?$", path)
            assert "hpcwrap" not in path


def test_a_step_in_another_container_sees_its_jobs(site: Site) -> None:
    text = f"#!/bin/sh\nsrun --container=debian-12 -n2 --mem=100 {READ}\n"
    document, _ = seen(site.batch(text, "-n2", "-N1", f"--mem={MEMORY >> 20}").output)
    assert (document["memory"], document["jvm memory"]) == (MEMORY, 100 << 20)


def test_a_steps_prolog_is_in_none_of_its_cgroups(site: Site) -> None:
    """Nor exempt from the OOM killer; neither does the end of step and job end it."""
    said = ends_late(site, "n1")
    assert ":freezer:/slurm" in said
    assert "/job_" not in said
    assert said.endswith("\n0\ncode 0\n")
    # 22.05 itself leaves some jobs' own in the freezer, with and without containers.
    find = f"find /sys/fs/cgroup/*/slurm* -path '*/job_{said.split()[1]}/step_*'"
    assert site.eventually(lambda: script(site, "n1", find) == "")
    assert site.eventually(lambda: site.leftovers("n1") == [])


def test_ranks_are_bound_as_without_a_container(site: Site) -> None:
    """task/affinity: two ranks of one CPU each; the container changes nothing of it."""
    ask = "srun -n2 --cpu-bind=cores sh -c 'grep Cpus_allowed_list /proc/self/status; nproc'"
    options = ("-n2", "-N1", "--mem=100")
    outside = site.batch(f"#!/bin/sh\n{ask}\n", *options)
    inside = site.batch(f"#!/bin/sh\n{ask}\n", "--container=debian-12", *options)
    assert outside.code == inside.code == 0
    assert sorted(inside.output.split()) == sorted(outside.output.split())


def test_openmp_has_a_thread_for_each_cpu_of_its_rank(site: Site) -> None:
    site.need("cluster", "as", "alice", "tee", "openmp.c", stdin=OPENMP.read_text())
    ask = "--cpu-bind=cores sh -c 'echo $(./openmp) of $(nproc)'"
    steps = f"gcc -fopenmp -o openmp openmp.c\nsrun -n1 -c2 {ask}\nsrun -Q -n2 -c1 {ask}\n"
    job = site.batch(f"#!/bin/sh\n{steps}", "--container=debian-12", "-n2", "-N1", "--mem=200")
    assert job.output.splitlines() == ["2 2 2 of 2", *["1 1 1 of 1"] * 2]


def test_memory_beyond_the_limit_ends_the_step(site: Site) -> None:
    fill = "python3 -c 'x = bytearray(300 << 20)'"
    job = site.batch(f"#!/bin/sh\nsrun {fill}\n", "--container=debian-12", "--mem=100")
    assert job.code != 0
    assert "oom" in job.output.lower()


def test_a_later_step_finds_the_cgroup_that_was_made_anew(site: Site) -> None:
    """Without an extern step the job's cgroup goes with each step of salloc's, and comes again."""
    read = f"srun {READ}"
    ran = site.alice(
        *("salloc", "--container=debian-12", "--mem=150", "sh", "-c", f"{read}; {read}")
    )
    assert [each["memory"] for each in seen(ran.stdout)] == [150 << 20] * 2


def test_nobody_changes_them_from_inside(site: Site) -> None:
    change = "cd /sys/fs/cgroup/; echo 1 >memory/memory.limit_in_bytes; ln -s / new; rm memory"
    ran = site.alice("srun", "--container=busybox-1", "--mem=100", "sh", "-c", change)
    assert ran.stderr.count("ermission denied") + ran.stderr.count("ead-only") == 3


def test_slurm_removes_its_cgroups_while_containers_are_there(site: Site) -> None:
    """A container that is kept by nothing but its pin holds no cgroup."""
    job = site.batch(f"#!/bin/sh\nsrun {READ}\n", "--container=debian-12", "--mem=100", "-wn1")
    look = f"find /sys/fs/cgroup -name job_{job.id} 2>/dev/null; true"
    assert site.eventually(lambda: script(site, "n1", look) == "")


def test_limits_of_hpcwraps_own_are_seen_too(site: Site) -> None:
    words = ("run", "--user", "alice", "--memory", "64m", "--cpuset", "0", "debian-12", "--")
    ran = site.root("n1", "hpcwrap", *words, "python3", "/home/alice/as-a-jvm.py")
    (found,) = seen(ran.stdout)
    assert (found["memory"], found["jvm memory"]) == (64 << 20, 64 << 20)
    assert (found["cpus"], found["jvm cpus"], found["affinity"]) == ("0", "0", [0])
