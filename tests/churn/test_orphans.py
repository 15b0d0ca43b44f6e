"""What runs on when its slurmd is killed, and what a boot ends: nothing of either stays."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

import census
import mischief
import pytest
from clusterlib import processes
from fournodes import REGISTRY, FourNodes

pytestmark = pytest.mark.slurm

IMAGE = "busybox-1:latest"
NODE = "n1"


@pytest.fixture(autouse=True)
def clean(four: FourNodes) -> Iterator[None]:
    """Nothing is left, and no node drained."""
    assert four.alice("srun", "-N4", "--container=red", "true").code == 0
    yield
    assert four.eventually(lambda: not any(census.take(four).values())), census.take(four)
    assert four.eventually(lambda: not four.drained()), four.drained()


@contextmanager
def slow_pull(four: FourNodes) -> Iterator[None]:
    """Whoever wants to pull the image has to wait: somebody else is at it."""
    name = f"ref-{REGISTRY}/{IMAGE}".replace("/", "%2F")
    path: Path = four.path("shared", "hpcwrap", "store", "locks", name)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def submit(four: FourNodes, container: str, script: str) -> str:
    """A job on one node; its id."""
    options = (f"--container={container}", f"--nodelist={NODE}", "--output=/dev/null")
    return four.submit(f"#!/bin/sh\n{script}\n", *options).stdout.strip()


def stages(four: FourNodes, stage: str) -> List[int]:
    """Prologs or epilogs that run, orphans as well."""
    words = f'main("{stage}", "slurm")'
    every = mischief.descendants([four.pids[NODE]])
    return [pid for pid in every if words in " ".join(processes.command_line(pid)[-1:])]


def test_an_epilog_waits_for_a_prolog_whose_slurmd_was_killed(four: FourNodes) -> None:
    four.add_environment("late", f"image: {REGISTRY}/{IMAGE}\n")
    with slow_pull(four):
        job = submit(four, "late", "sleep 60")
        place = four.node_path(NODE, "run/hpcwrap/jobs", job)
        assert four.eventually(place.is_dir), "an epilog would see nothing to wait for"
        assert mischief.kill_daemon(four, NODE)
        four.run(NODE, "slurmd")
        four.run("ctl", "scancel", job)
        assert four.eventually(lambda: bool(stages(four, "epilog"))), four.job(job)
        assert stages(four, "prolog")
    assert four.eventually(lambda: four.has_ended(job), 60), four.job(job)


def test_leases_that_a_boot_has_lost_go_with_the_next_job(four: FourNodes) -> None:
    job = submit(four, "red", "sleep 60")
    assert four.eventually(lambda: bool(leases(four, job))), four.job(job)
    four.need("cluster", "reboot", NODE, "sh", "/shared/provision.sh")
    four.run("ctl", "scancel", job)
    assert four.eventually(lambda: four.has_ended(job), 60), four.job(job)
    assert leases(four, job), "nobody on the node knows of the job any more"
    assert_the_next_job_sweeps(four, job)


def test_leases_that_an_epilog_without_python_has_lost_go_with_the_next_job(
    four: FourNodes,
) -> None:
    python = "/opt/hpcwrap/bin/python3"
    job = submit(four, "red", "sleep 60")
    assert four.eventually(lambda: bool(leases(four, job))), four.job(job)
    four.run(NODE, "mount", "--bind", "/bin/false", python)
    try:
        four.run("ctl", "scancel", job)
        assert four.eventually(lambda: four.has_ended(job), 60), four.job(job)
    finally:
        four.run(NODE, "umount", python)
    assert leases(four, job), "only Python knows of them"
    assert not four.drained()
    assert_the_next_job_sweeps(four, job)


def leases(four: FourNodes, job: str) -> List[str]:
    """What the store has of a job."""
    return [each for each in census.below(four, "leases/*/*") if each.endswith(f":{job}")]


def assert_the_next_job_sweeps(four: FourNodes, job: str) -> None:
    """One more job on the node, and those of the other are gone."""
    ran = four.alice("srun", f"--nodelist={NODE}", "--container=red", "cat", "/churn-image")
    assert ran.stdout == "red\n"
    assert four.eventually(lambda: not leases(four, job))
