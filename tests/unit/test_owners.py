"""Owners of jobs, turns at their directories, and what a sweep takes for left over."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator
from zlib import crc32

import pytest

from hpcwrap import epilog, owners, sweep
from hpcwrap.paths import JobPaths
from hpcwrap.run import start_time

HOLD = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hpcwrap import owners, paths\n"
    "with owners.turn(paths.JobPaths(sys.argv[3], sys.argv[2])):\n"
    "    print('mine', flush=True); sys.stdin.read()\n"
)
REPOSITORY = str(Path(__file__).parents[2])


@pytest.fixture
def place(tmp_path: Path) -> JobPaths:
    place = JobPaths("pbs-12.server", str(tmp_path / "jobs"))
    os.makedirs(place.directory)
    return place


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as child:
        yield child
        child.kill()


def test_nobody_shares_a_turn_with_anothers_job_by_choice_of_words() -> None:
    """A checksum of 32 bits is soon found twice."""
    slots = [str(random.Random(n).getrandbits(60)) for n in range(100000)]
    ours, theirs = (
        {crc32(name.encode()): name for name in (f"htcondor-1.0-{slot}-u{user}" for slot in slots)}
        for user in (2001, 2002)
    )
    same = ours.keys() & theirs.keys()
    assert same
    assert all(owners.byte_of(ours[each]) != owners.byte_of(theirs[each]) for each in same)
    assert owners.byte_of("gridengine-1-0") >> 32 == 0
    assert 0 < owners.byte_of("lsf-1-0-u4294967294") < 1 << 63


def jobs_of(place: JobPaths) -> str:
    return os.path.dirname(place.directory)


def test_a_job_is_left_over_when_its_last_owner_was_killed(
    place: JobPaths, sleeper: subprocess.Popen[bytes]
) -> None:
    with subprocess.Popen(["sleep", "100"]) as other:
        owners.begin(place, [sleeper.pid])
        assert owners.add(place, other.pid)
        sleeper.kill()
        sleeper.wait()
        assert owners.alive(place)
        other.kill()
    assert not owners.alive(place)
    assert sweep.left_over(jobs_of(place)) == ["pbs-12.server"]
    assert sweep.sweep(jobs_of(place)) == sweep.Swept(["pbs-12.server"], {})
    assert not os.path.exists(place.directory)


def test_an_owner_that_nobody_has_waited_for_is_gone(place: JobPaths) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(100)
        os._exit(0)
    owners.begin(place, [child])
    assert owners.alive(place)
    os.kill(child, 9)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert start_time(child) != "", "a zombie has its number still"
    assert not owners.alive(place)
    os.waitpid(child, 0)


def test_a_number_that_was_given_out_again_is_another_process(place: JobPaths) -> None:
    owners.begin(place, [os.getpid()])
    (note,) = os.listdir(place.owners)
    assert note == f"{os.getpid()}-{start_time(os.getpid())}"
    os.rename(f"{place.owners}/{note}", f"{place.owners}/{os.getpid()}-1")
    assert not owners.alive(place)


def test_an_owner_may_leave(place: JobPaths, sleeper: subprocess.Popen[bytes]) -> None:
    owners.begin(place, [sleeper.pid, os.getpid()])
    owners.drop(place, os.getpid())
    owners.drop(place, os.getpid())
    assert os.listdir(place.owners) == [f"{sleeper.pid}-{start_time(sleeper.pid)}"]
    owners.drop(place, sleeper.pid)
    assert not owners.alive(place)


def test_a_job_that_is_to_have_no_owner_is_left_alone(place: JobPaths) -> None:
    Path(place.record).touch()
    owners.begin(place, [])
    assert owners.alive(place)
    assert sweep.sweep(jobs_of(place)).ended == []
    assert os.path.exists(place.record)


def test_nobody_becomes_the_owner_of_what_is_gone(place: JobPaths) -> None:
    os.rmdir(place.directory)
    assert not owners.add(place, os.getpid())
    assert not os.path.exists(place.directory)


@pytest.mark.parametrize("with_owners", [False, True])
def test_what_a_killed_prolog_has_just_begun_is_left_over(
    place: JobPaths, *, with_owners: bool
) -> None:
    if with_owners:
        os.mkdir(place.owners)
    assert sweep.sweep(jobs_of(place)).ended == ["pbs-12.server"]
    assert not os.path.exists(place.directory)


def test_a_sweep_leaves_alone_what_another_is_at(place: JobPaths) -> None:
    argv = [sys.executable, "-I", "-c", HOLD, REPOSITORY, jobs_of(place), "pbs-12.server"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as prolog:
        assert prolog.stdout
        assert prolog.stdout.readline() == b"mine\n"
        assert sweep.left_over(jobs_of(place)) == ["pbs-12.server"]
        assert sweep.sweep(jobs_of(place)).ended == []
        with owners.turn(JobPaths("pbs-13.server", jobs_of(place)), wait=False) as free:
            assert free, "another job's turn is another's"
        prolog.kill()
    assert sweep.sweep(jobs_of(place)).ended == ["pbs-12.server"]


def test_an_epilog_does_not_wait_for_whoever_ends_the_job_itself(
    place: JobPaths, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prolog, say, that pulls for a step whose slurmstepd is gone."""
    monkeypatch.setattr(JobPaths.__init__, "__defaults__", (jobs_of(place),))
    owners.begin(place, [sleeper.pid])
    sleeper.kill()
    sleeper.wait()
    argv = [sys.executable, "-I", "-c", HOLD, REPOSITORY, jobs_of(place), "pbs-12.server"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as prolog:
        assert prolog.stdout
        assert prolog.stdout.readline() == b"mine\n"
        assert epilog.epilog("pbs-12.server") is None
        assert os.path.isdir(place.directory)
        prolog.kill()
    epilog.epilog("pbs-12.server")
    assert not os.path.exists(place.directory)


def test_the_first_look_after_a_boot_finds_nothing(tmp_path: Path) -> None:
    assert sweep.left_over(str(tmp_path / "jobs")) == []
