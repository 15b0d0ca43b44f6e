"""Eight nodes start the same cold image at once: one pull a store, and everyone starts."""

from __future__ import annotations

from collections import Counter
from typing import Iterator, List

import pytest
from cluster_site import state_of
from node_tools import CACHE, NODES, OWN_STORE, STORE, Nodes
from site_tools import Job

pytestmark = pytest.mark.slurm

RATE = 800_000
"""Bytes a second: the image of 1 MB takes more than a second, and all nodes meet in it."""

SCRIPT = "#!/bin/sh\n#SBATCH --container=front\necho $HPCWRAP_CONTAINER on $(hostname)\n"
INSIDE = "front@sha256:"


@pytest.fixture(scope="module", name="cluster")
def bring_up() -> Iterator[Nodes]:
    """Eight nodes with hpcwrap."""
    nodes = Nodes(f"{state_of('slurm')}-nodes")
    nodes.bring_up()
    yield nodes
    nodes.take_down()


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


@pytest.fixture(name="cached")
def make_shared_store(nodes: Nodes) -> Nodes:
    """Two images of one size in the shared store, and caches of nodes with room for one."""
    nodes.configure()
    for name in ("busybox-1", "other"):
        nodes.need("cluster", "exec", "ctl", "hpcwrap", "pull", "--quiet", name)
    size = nodes.images()["other"]["size"]
    nodes.configure(cache=CACHE, cache_size=str(size * 3 // 2))
    return nodes


def test_a_node_reads_its_own_copy(cached: Nodes) -> None:
    srun = ("srun", "-N8", "--container=busybox-1", "/bin/sh", "-c", "echo $HPCWRAP_CONTAINER")
    first = cached.alice(*srun)
    assert first.stdout.count("busybox-1@sha256:") == len(NODES)
    assert [cached.copies(node) for node in NODES] == [cached.digests("busybox-1")] * len(NODES)
    cached.spoil(STORE, "busybox-1")
    second = cached.alice(*srun)
    assert (second.code, sorted(second.stdout)) == (0, sorted(first.stdout))


def test_eight_jobs_of_a_node_make_one_copy(cached: Nodes) -> None:
    script = "#!/bin/sh\n#SBATCH --container=busybox-1 -w n1 -n1\necho $HPCWRAP_CONTAINER\n"
    jobs = cached.jobs_at_once(script, 8)
    assert [job.output[:17] for job in jobs] == ["busybox-1@sha256:"] * 8
    assert cached.copies("n1") == cached.digests("busybox-1")


def test_a_copy_in_use_stays_and_the_longest_unused_goes(cached: Nodes) -> None:
    on_n1 = ("-w", "n1", "-n1")
    script = "#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.1; done; ls /bin/sh\n"
    ran = cached.submit(script, "--container=busybox-1", "--output=user", *on_n1)
    user = ran.stdout.strip()
    assert cached.eventually(lambda: "JobState=RUNNING" in cached.job(user))
    other = ("srun", *on_n1, "--container=other", "/bin/sh", "-c", "echo $HPCWRAP_CONTAINER")
    assert cached.alice(*other).stdout.startswith("other@sha256:")
    assert cached.copies("n1") == cached.digests("busybox-1"), "no room beside what is in use"
    cached.alice("touch", "go")
    assert cached.eventually(lambda: cached.has_ended(user))
    assert cached.alice("cat", "user").stdout == "/bin/sh\n"
    assert cached.alice(*other).stdout.startswith("other@sha256:")
    assert cached.copies("n1") == cached.digests("other")
