"""Eight nodes start the same cold image at once: one pull a store, and everyone starts."""

from __future__ import annotations

import os
from collections import Counter
from typing import Iterator, List

import pytest
from node_tools import NODES, OWN_STORE, Nodes
from site_tools import Job

pytestmark = pytest.mark.slurm

STATE = "/var/tmp/hpcwrap-test-nodes"
RATE = 800_000
"""Bytes a second: the image of 1 MB takes more than a second, and all nodes meet in it."""

SCRIPT = "#!/bin/sh\n#SBATCH --container=front\necho $HPCWRAP_CONTAINER on $(hostname)\n"
INSIDE = "front@sha256:"


@pytest.fixture(scope="module", name="cluster")
def bring_up() -> Iterator[Nodes]:
    """Eight nodes with hpcwrap."""
    nodes = Nodes(STATE)
    nodes.bring_up()
    yield nodes
    if not os.environ.get("HPCWRAP_TEST_KEEP"):
        nodes.need("cluster", "down")


@pytest.fixture(name="nodes")
def make_cold(cluster: Nodes) -> Iterator[Nodes]:
    """The nodes with cold stores; a test starts the front that it needs."""
    cluster.make_cold()
    yield cluster
    cluster.stop_front()
    cluster.root("ctl", "scancel", "--user=alice")
    assert cluster.node_states() <= {"idle", "comp", "alloc", "mix"}, "a node was drained"


def started_on(jobs: List[Job]) -> Counter[str]:
    """How many jobs ran in the container, by node."""
    lines = [line for job in jobs for line in job.output.splitlines() if INSIDE in line]
    return Counter(line.split(" on ")[1] for line in lines)


def test_a_job_of_eight_nodes_pulls_once(nodes: Nodes) -> None:
    nodes.configure()
    nodes.start_front(RATE)
    ran = nodes.alice(
        "srun", "-N8", "--container=front", "/bin/sh", "-c", "echo $HPCWRAP_CONTAINER"
    )
    assert (ran.code, ran.stdout.count(INSIDE)) == (0, len(NODES))
    assert set(nodes.blobs().values()) == {1}
    assert len({each.node for each in nodes.asked("/busybox-1/")}) == 1


def test_eight_jobs_pull_once(nodes: Nodes) -> None:
    nodes.configure()
    nodes.start_front(RATE)
    jobs = nodes.jobs_at_once(SCRIPT, 8, "--exclusive")
    assert started_on(jobs) == Counter(NODES)
    assert set(nodes.blobs().values()) == {1}
    assert len({each.node for each in nodes.asked("/busybox-1/")}) == 1


def test_another_takes_over_when_the_puller_is_killed(nodes: Nodes) -> None:
    nodes.configure()
    nodes.start_front(RATE)
    submitted = nodes.submit(SCRIPT, "--array=1-8", "--exclusive", "--output=out-%A-%a")
    puller = nodes.wait_for_request("/blobs/").node
    (prolog,) = nodes.prologs(puller)
    assert nodes.root(puller, "kill", "-9", str(prolog)).code == 0
    jobs = nodes.ended(submitted.stdout.strip(), 8)
    assert started_on(jobs) == Counter(node for node in NODES if node != puller)
    (failed,) = (job for job in jobs if job.code)
    assert "the prolog ended with code 137" in failed.output
    assert len({each.node for each in nodes.asked("/blobs/")}) == 2
    assert max(nodes.blobs().values()) <= 2


def test_nodes_with_stores_of_their_own_pull_once_each(nodes: Nodes) -> None:
    nodes.configure(OWN_STORE, pull_jitter=2)
    nodes.start_front(RATE)
    jobs = nodes.jobs_at_once(SCRIPT, 16, "--ntasks=1", "--cpus-per-task=4")
    assert sum(started_on(jobs).values()) == 16
    by_node = Counter((each.node, each.path) for each in nodes.asked("/blobs/"))
    assert set(by_node.values()) == {1}
    assert {node for node, _ in by_node} == set(NODES)


def test_a_registry_that_refuses_now_and_then(nodes: Nodes) -> None:
    nodes.configure(OWN_STORE, pull_jitter=2)
    nodes.start_front(RATE, refuse=4)
    ran = nodes.alice(
        "srun", "-N8", "--container=front", "/bin/sh", "-c", "echo $HPCWRAP_CONTAINER"
    )
    assert 429 in {each.code for each in nodes.asked()}
    assert (ran.code, ran.stdout.count(INSIDE)) == (0, len(NODES))
