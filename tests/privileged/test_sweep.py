"""Real containers whose owners were killed: a sweep leaves nothing of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Iterator, List

import pytest
from containers import Container, Make, bound_files

from hpcwrap import owners, record, sweep
from hpcwrap.container import build, limits, namespaces
from hpcwrap.job import Limits
from hpcwrap.paths import JobPaths

pytestmark = pytest.mark.privileged

MOMENTS = (0.0, 0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.02)
"""Seconds after its start at which a prolog is killed."""


@pytest.fixture
def shepherd() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as child:
        yield child
        child.kill()


def jobs_of(container: Container) -> str:
    return os.path.dirname(container.place.directory)


def eventually_free(squashfs: Path) -> bool:
    """The kernel frees a loop device a moment after its last use."""
    for _ in range(200):
        if str(squashfs) not in bound_files():
            return True
        time.sleep(0.05)
    return False


def pins(place: JobPaths) -> List[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line for line in file if f"{place.directory}/" in line]


def test_a_killed_owner_takes_its_job_along(
    request: pytest.FixtureRequest,
    make: Make,
    squashfs: Path,
    shepherd: subprocess.Popen[bytes],
) -> None:
    container = make(user_namespace=True)
    owners.begin(container.place, [shepherd.pid])
    limits.make(Limits(pids=20), container.place)
    request.addfinalizer(lambda: limits.release(container.place))
    inside = subprocess.Popen(["sleep", "100"], preexec_fn=lambda: limits.join(container.place))
    assert sweep.sweep(jobs_of(container)).ended == []
    assert container.run("true").code == 0
    shepherd.kill()
    shepherd.wait()
    assert sweep.sweep(jobs_of(container)).ended == [os.path.basename(container.place.directory)]
    assert inside.wait(10) == -signal.SIGKILL
    assert os.listdir(jobs_of(container)) == []
    assert pins(container.place) == []
    assert eventually_free(squashfs)


def test_a_prolog_killed_at_any_moment_leaves_nothing_that_a_sweep_does_not_take(
    make: Make, squashfs: Path
) -> None:
    container = make(user_namespace=False)
    place = container.place
    build.release(place)
    record.remove(place)
    for delay in MOMENTS:
        child = os.fork()
        if child == 0:
            with owners.turn(place):
                os.makedirs(place.directory)
                owners.begin(place, [os.getpid()])
                build.build(container.plan, place)
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sweep.sweep(jobs_of(container))
        assert os.listdir(jobs_of(container)) == []
        assert pins(place) == []
    assert eventually_free(squashfs)


def begin(container: Container, processes: List[int]) -> None:
    """What the prolog does to a job's directory; without processes its owner is gone already."""
    place = container.place
    with owners.turn(place):
        build.release(place)
        record.remove(place)
        os.makedirs(place.owners)
        owners.begin(place, processes)
        build.build(container.plan, place)


def test_a_sweep_beside_prologs_of_the_same_job_never_takes_a_living_one(
    make: Make, shepherd: subprocess.Popen[bytes]
) -> None:
    """One process sweeps without a pause while another begins and ends the job again and again."""
    container = make(user_namespace=True)
    place, jobs = container.place, jobs_of(container)
    sweeper = os.fork()
    if sweeper == 0:
        while True:
            sweep.sweep(jobs)
            time.sleep(0.001)
    try:
        for _ in range(10):
            begin(container, [])
            begin(container, [shepherd.pid])
            assert namespaces.is_mount_point(place.mount_namespace)
            time.sleep(0.002)
            assert namespaces.is_mount_point(place.mount_namespace)
    finally:
        os.kill(sweeper, signal.SIGKILL)
        os.waitpid(sweeper, 0)
