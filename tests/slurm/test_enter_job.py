"""`hpcwrap enter`: into the container of a job that runs."""

from __future__ import annotations

import re
from typing import Iterator, Tuple

import pytest
from site_tools import Ran, Site

pytestmark = pytest.mark.slurm

LOOK = ("/bin/sh", "-c", "id -un; readlink /proc/self/ns/mnt; echo $HPCWRAP_CONTAINER; exit 7")
STAY = (
    "#!/bin/sh\n{}touch here-$SLURM_JOB_ID\nwhile ! [ -e go-$SLURM_JOB_ID ]; do sleep 0.1; done\n"
)
NAMESPACE = "readlink /proc/self/ns/mnt\n"


def begin(site: Site, *options: str) -> str:
    """A job of alice's that runs until it is let go; its number."""
    ran = site.submit(STAY.format(NAMESPACE), "--output=stay-%j", *options)
    job = ran.stdout.strip()
    assert site.eventually(lambda: site.alice("ls", f"here-{job}").code == 0, 60), ran.stderr
    return job


def end(site: Site, *jobs: str) -> None:
    """Let jobs go, and wait."""
    for job in jobs:
        site.alice("touch", f"go-{job}")
    assert site.eventually(lambda: all(map(site.has_ended, jobs)), 60)


@pytest.fixture(scope="module", name="job")
def job_of_two_nodes(site: Site) -> Iterator[Tuple[str, str]]:
    """A job with a container on both nodes: its number, and the namespace of its script."""
    job = begin(site, "--container=busybox-1", "-N2", "-n2", "--comment=AdminComment=x UserID=0")
    yield job, site.alice("cat", f"stay-{job}").stdout.strip()
    end(site, job)


def test_its_user_enters_from_the_submit_host(site: Site, job: Tuple[str, str]) -> None:
    number, namespace = job
    ran = site.alice("hpcwrap", "enter", number, "--", *LOOK)
    user, found, container = ran.stdout.split()
    assert (ran.code, user, found) == (7, "alice", namespace)
    assert container.startswith("busybox-1@")


@pytest.mark.parametrize("after", [False, True], ids=["before the job", "after it"])
def test_another_of_its_nodes(site: Site, job: Tuple[str, str], *, after: bool) -> None:
    words = (job[0], "--node", "n2") if after else ("--node=n2", job[0])
    ran = site.alice("hpcwrap", "enter", *words, "--", "uname", "-n")
    assert (ran.code, ran.stdout) == (0, "n2\n"), ran.stderr


def test_a_shell_reads_what_it_is_given(site: Site, job: Tuple[str, str]) -> None:
    ran = site.alice("hpcwrap", "enter", job[0], stdin="echo shell $HPCWRAP_CONTAINER; exit 3\n")
    assert ran.code == 3
    assert ran.stdout.startswith("shell busybox-1@"), ran.stderr


def test_a_terminal_is_one_inside(site: Site, job: Tuple[str, str]) -> None:
    ran = site.alice("script", "-qec", f"hpcwrap enter {job[0]} -- tty", "/dev/null")
    assert ran.code == 0
    assert re.search(r"/dev/pts/\d+", ran.stdout)


def test_root_enters_as_the_jobs_user(site: Site, job: Tuple[str, str]) -> None:
    number, namespace = job
    ran = site.root("n1", "hpcwrap", "enter", number, "--", *LOOK)
    assert ran.stdout.split()[:2] == ["alice", namespace], ran.stderr
    on_n2 = site.root("n2", "hpcwrap", "enter", number, "--", "uname", "-n")
    assert on_n2.stdout == "n2\n", "the node where it was said"


def refused(ran: Ran) -> str:
    """The one sentence of a refusal."""
    assert (ran.code, ran.stdout) == (2, "")
    (sentence,) = ran.stderr.splitlines()
    return sentence


def test_nobody_else_enters(site: Site, job: Tuple[str, str]) -> None:
    sentence = refused(site.bob("hpcwrap", "enter", job[0], "--", *LOOK))
    assert f"cannot enter the job {job[0]}: it is alice's" in sentence


def test_what_is_not_there_is_said(site: Site, job: Tuple[str, str]) -> None:
    def enter(*words: str) -> str:
        return refused(site.alice("hpcwrap", "enter", *words, "--", "true"))

    assert "no such job waits or runs" in enter("999999")
    assert "it runs on n1, n2" in enter("--node", "n9", job[0])
    assert "that is no number" in enter("../../etc")
    assert "option --nodes not recognized" in enter(job[0], "--nodes", "2")
    assert "it has no container on this node" in enter("pbs-1")
    held = site.submit("#!/bin/sh\n", "--container=busybox-1", "--hold").stdout.strip()
    assert "it is not running (pending)" in enter(held)
    site.alice("scancel", held)
    bare = begin(site, "-wn1", "--overcommit")
    assert "it has no container (for a shell beside it: srun" in enter(bare)
    end(site, bare)


def test_a_host_outside_of_the_cluster_is_told(site: Site) -> None:
    ran = site.alice("env", "SLURM_CONF=/dev/null", "hpcwrap", "enter", "1")
    assert (ran.code, ran.stderr.count("\n")) == (3, 1)
    assert "this host has no slurm.conf that it can read (say this on a submit host" in ran.stderr
    assert "squeue" not in ran.stderr


RUN = "exec hpcwrap run --user alice --memory 200m busybox-1 -- sh -c 'cat >/dev/null'"


@pytest.fixture(name="directly")
def container_without_a_scheduler(site: Site) -> Iterator[str]:
    """A container that its user joins: `hpcwrap run`; the name of its directory."""
    start = (
        f"mkfifo /run/hold; ({RUN}) </run/hold >/dev/null 2>&1 & "
        "sleep 600 >/run/hold 2>/dev/null & echo $!"
    )
    holder = site.root("n1", "sh", "-c", start).stdout.strip()
    listing = ("sh", "-c", "ls -d /run/hpcwrap/jobs/run-*/entry")
    assert site.eventually(lambda: site.root("n1", *listing).code == 0)
    yield site.root("n1", *listing).stdout.split("/")[-2]
    site.root("n1", "sh", "-c", f"kill {holder}; rm /run/hold")
    assert site.eventually(lambda: site.root("n1", *listing).code != 0)


def test_a_container_of_the_users_own_is_joined_directly(site: Site, directly: str) -> None:
    def enter(user: str) -> Ran:
        as_user = ("runuser", "-u", user, "--") if user != "root" else ()
        return site.root("n1", *as_user, "hpcwrap", "enter", directly, "--", *LOOK)

    alices, roots = enter("alice"), enter("root")
    assert alices.stdout.split()[0] == roots.stdout.split()[0] == "alice"
    assert alices.stdout.split()[1] == roots.stdout.split()[1] != ""
    assert (alices.code, roots.code) == (7, 7)
    assert "limits that do not bind" in alices.stderr
    assert roots.stderr == ""
    assert "it is not yours" in refused(enter("bob"))
