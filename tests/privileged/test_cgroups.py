"""A job's cgroups on this machine, whatever version its kernel has them in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, FrozenSet, Iterator, List, Sequence

import pytest
from containers import ALICE

from hpcwrap import epilog, paths, record, snapshot
from hpcwrap.config import Settings
from hpcwrap.container import cgroups, limits
from hpcwrap.container.limitplan import plan
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import Limits
from hpcwrap.textfile import read_text

pytestmark = pytest.mark.privileged

MEBIBYTE = 1 << 20
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["all hierarchies", "version 1", "without freezer"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[paths.JobPaths]:
    """The directory of a job whose cgroups go away with the test."""
    if request.param != "all hierarchies":
        found = [each.controllers for each in cgroups.find_hierarchies() if each.version == 1]
        if not any("freezer" in each for each in found):
            pytest.skip("the controllers are in version 2 here")
        left = [each for each in found if request.param == "version 1" or "freezer" not in each]
        monkeypatch.setattr(limits, "find_hierarchies", lambda: version_1(left))
    made = paths.JobPaths(f"test{os.getpid()}", str(tmp_path))
    os.mkdir(made.directory)
    yield made
    limits.release(made)
    assert left_over(made) == []


def version_1(controllers: Sequence[FrozenSet[str]]) -> List[cgroups.Hierarchy]:
    return [each for each in cgroups.find_hierarchies() if each.controllers in controllers]


def left_over(place: paths.JobPaths) -> List[str]:
    """Cgroups of the job's name, wherever one could be."""
    name = limits.name_of(place)
    return [path for path in where(place) if name in path and os.path.exists(path)]


def where(place: paths.JobPaths) -> List[str]:
    """The cgroups of the job, as its note has them."""
    return [path for path, _ in limits._read_note(place).get("cgroups", ())]


@pytest.fixture(name="start")
def start_in_job(place: paths.JobPaths) -> Start:
    """Start a command as alice in the job, as a scheduler's daemon would."""

    def start(*command: str) -> subprocess.Popen[str]:
        def become() -> None:
            limits.join(place)
            os.setgroups([])
            os.setresgid(ALICE.gid, ALICE.gid, ALICE.gid)
            os.setresuid(ALICE.uid, ALICE.uid, ALICE.uid)

        return subprocess.Popen(
            command, preexec_fn=become, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", script)


def file_of(place: paths.JobPaths, name: str) -> str:
    """The text of a file of whichever of the job's cgroups has it."""
    return "".join(read_text(f"{path}/{name}") for path in where(place))


def test_more_memory_than_the_limit_is_not_to_be_had(place: paths.JobPaths, start: Start) -> None:
    limits.make(Limits(memory=64 * MEBIBYTE), place)
    child = start(*python("x = b'x' * (200 << 20); print('had it')"))
    assert child.communicate()[0] == ""
    assert child.returncode == -signal.SIGKILL
    usage = limits.release(place)
    assert usage is not None
    assert usage.oom_kills == 1
    assert 32 * MEBIBYTE < usage.peak <= 64 * MEBIBYTE
    assert "memory limit of 64 MiB: the kernel killed 1 of its processes" in usage.sentence()


def test_the_sites_log_has_what_the_kernel_killed(
    place: paths.JobPaths, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(log=str(tmp_path / "jobs.jsonl"))
    monkeypatch.setattr(paths, "JobPaths", lambda _job: place)
    monkeypatch.setattr(snapshot, "load_settings", lambda: settings)
    limits.make(Limits(memory=64 * MEBIBYTE), place)
    names = ("7", "pbs", "n1", "alice", "debian-12", "", "debian:12", "sha256:0")
    record.write_record(place, record.Record(*names, started=0.0, milliseconds={}))
    start(*python("x = b'x' * (200 << 20)")).wait()
    summary = epilog.epilog("7")
    assert summary is not None
    epilog.keep(summary)
    kept = json.loads(Path(settings.log).read_text())
    assert (kept["oom_kills"], kept["lost_limits"]) == (1, "")
    assert "the job reached its memory limit of 64 MiB" in kept["oom"]
    assert kept["memory_peak"] > 32 * MEBIBYTE
    assert (kept["pids_refused"], kept["pids"]) == (0, "")


def test_enough_memory_is_no_story(place: paths.JobPaths, start: Start) -> None:
    limits.make(Limits(memory=64 * MEBIBYTE, swap=0), place)
    assert start("true").wait() == 0
    usage = limits.release(place)
    assert usage is not None
    assert (usage.oom_kills, usage.sentence()) == (0, "")


def test_processes_are_counted(place: paths.JobPaths, start: Start) -> None:
    limits.make(Limits(pids=3), place)
    child = start("sh", "-c", "for n in 1 2 3 4 5; do sleep 600 & done; echo all")
    assert child.wait(timeout=30) != 0
    assert len(set(file_of(place, "cgroup.procs").split())) == 2
    usage = limits.release(place)
    assert child.communicate()[0] == "sh: 0: Cannot fork\n"
    assert usage is not None
    assert usage.refused == 1
    assert usage.pids_sentence() == (
        "the job reached its limit of 3 processes and threads: the kernel refused 1 more "
        "(ask for more (--pids), or use fewer threads)"
    )


def test_what_the_end_itself_refuses_is_no_story(place: paths.JobPaths, start: Start) -> None:
    """It lets nobody be born any more, and a killed one may have done so before."""
    limits.make(Limits(pids=5), place)
    for path in where(place):
        if os.path.exists(f"{path}/pids.max"):
            cgroups.write(f"{path}/pids.max", "0")
    assert start("sh", "-c", "/bin/true; echo all").communicate()[0] == "sh: 1: Cannot fork\n"
    usage = limits.release(place)
    assert usage is not None
    assert (usage.refused, usage.pids_sentence()) == (0, "")


def test_cpus_are_the_jobs(place: paths.JobPaths, start: Start) -> None:
    limits.make(Limits(cpuset="0"), place)
    assert start("nproc").communicate()[0] == "1\n"


def test_cpus_that_are_not_there_are_the_users_mistake(place: paths.JobPaths) -> None:
    with pytest.raises(UserError, match="cannot give the job the CPUs 0-4095: there are 0"):
        limits.make(Limits(cpuset="0-4095"), place)


def test_time_of_processors_is_rationed(place: paths.JobPaths, start: Start) -> None:
    limits.make(Limits(cpus=0.05), place)
    child = start("sh", "-c", "while :; do :; done")
    until = time.monotonic() + 30
    while "nr_throttled 0\n" in file_of(place, "cpu.stat") and time.monotonic() < until:
        time.sleep(0.05)
    assert "nr_throttled 0\n" not in file_of(place, "cpu.stat")
    limits.release(place)
    assert child.wait() == -signal.SIGKILL


WAYS_OUT = """
import os, sys
left = []
MORE = [("memory.limit_in_bytes", "-1"), ("memory.max", "max"), ("pids.max", "max"),
        ("../cgroup.procs", "0"), ("../tasks", "0"), ("cgroup.subtree_control", "-pids")]
for directory in sys.argv[1:]:
    for name, text in MORE:
        path = os.path.join(directory, name)
        try:
            if os.path.exists(path):
                os.write(os.open(path, os.O_WRONLY), text.encode())
                left.append(path)
        except PermissionError:
            pass
    try:
        os.mkdir(directory + "/mine")
        left.append(directory)
    except PermissionError:
        pass
print(left, open("/proc/self/cgroup").read())
"""


@pytest.mark.parametrize("namespaces", [(), ("unshare", "--user", "--map-root-user", "--cgroup")])
def test_a_user_cannot_leave(
    place: paths.JobPaths, start: Start, namespaces: tuple[str, ...]
) -> None:
    limits.make(Limits(memory=64 * MEBIBYTE, pids=50), place)
    out, _ = start(*namespaces, *python(WAYS_OUT), *where(place)).communicate(timeout=30)
    assert out.startswith("[]")
    if not namespaces:
        assert out.count(f"/{limits.name_of(place)}\n") == len(where(place))


def test_a_user_cannot_leave_into_a_cgroup_of_its_own(place: paths.JobPaths) -> None:
    """A session's cgroup may be its user's (Delegate= of systemd.resource-control(5))."""
    limit = Limits(memory=64 * MEBIBYTE)
    before = {path: os.path.dirname(path) for path in planned(place, limit)}
    delegated = [f"{parent}/delegated{os.getpid()}" for parent in before.values()]
    try:
        for path in delegated:
            os.mkdir(path)
            for name in ("", "/cgroup.procs", "/tasks"):
                if os.path.exists(path + name):
                    os.chown(path + name, ALICE.uid, ALICE.gid)
            cgroups.write(f"{path}/cgroup.procs", "0")
        limits.make(limit, place)
        assert {path: os.path.dirname(path) for path in where(place)} == before
    finally:
        limits.release(place)
        for path, parent in zip(delegated, before.values()):
            cgroups.write(f"{parent}/cgroup.procs", "0")
            os.rmdir(path)


def planned(place: paths.JobPaths, limit: Limits) -> List[str]:
    """The cgroups that a job of these limits gets from where we are."""
    made = plan(limit, limits.name_of(place), limits.find_hierarchies(), limits.this_node())
    return [each.path for each in made]


STUBBORN = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for count in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(600)
print("up", flush=True)
"""


def test_nothing_of_a_job_outlives_its_cgroup_and_nothing_else_ends(
    place: paths.JobPaths, start: Start
) -> None:
    limits.make(Limits(pids=50), place)
    bystander = subprocess.Popen(["sleep", "600"])
    child = start(*python(STUBBORN))
    assert child.stdout
    assert child.stdout.readline() == "up\n"
    child.wait()
    assert len(running(place)) == 3
    limits.release(place)
    assert left_over(place) == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def running(place: paths.JobPaths) -> List[str]:
    """Processes of the job, once those that are about to end have."""
    until = time.monotonic() + 10
    while len(found := file_of(place, "cgroup.procs").split()) > 3 * len(where(place)):
        assert time.monotonic() < until
        time.sleep(0.01)
    return sorted(set(found))


def test_a_fork_bomb_is_ended(place: paths.JobPaths, start: Start) -> None:
    limits.make(Limits(pids=200), place)
    child = start(*python("import os\nwhile True:\n try: os.fork()\n except OSError: pass"))
    until = time.monotonic() + 20
    while len(file_of(place, "cgroup.procs").split()) < 100 and time.monotonic() < until:
        time.sleep(0.01)
    limits.release(place)
    assert child.wait() == -signal.SIGKILL
    assert left_over(place) == []


def test_a_process_that_runs_already_can_be_moved_in(place: paths.JobPaths) -> None:
    limits.make(Limits(pids=50), place)
    child = subprocess.Popen(["sleep", "600"])
    limits.join(place, child.pid)
    assert str(child.pid) in file_of(place, "cgroup.procs").split()
    limits.release(place)
    assert child.wait() == -signal.SIGKILL


def test_releasing_twice_and_half_made_ones(place: paths.JobPaths) -> None:
    limits.make(Limits(memory=64 * MEBIBYTE, pids=50), place)
    os.rmdir(where(place)[-1])
    assert limits.release(place) is not None
    assert limits.release(place) is not None
    assert epilog.drop(place) is not None
    assert not os.path.exists(place.directory)


def test_a_second_job_of_the_same_name_is_refused(place: paths.JobPaths) -> None:
    limits.make(Limits(pids=50), place)
    with pytest.raises(SiteError, match=r"cannot make the cgroup .*: File exists"):
        limits.make(Limits(pids=50), place)


def test_huge_pages_are_limited_where_the_kernel_can(place: paths.JobPaths) -> None:
    if not limits.huge_page_sizes():
        pytest.skip("this kernel has no huge pages")
    if not has_controller("hugetlb"):
        with pytest.raises(SiteError, match="no controller hugetlb here"):
            limits.make(Limits(hugetlb=2 * MEBIBYTE), place)
        return
    limits.make(Limits(hugetlb=2 * MEBIBYTE), place)
    given = file_of(place, "hugetlb.2MB.max") + file_of(place, "hugetlb.2MB.limit_in_bytes")
    assert given == f"{2 * MEBIBYTE}\n"


def has_controller(name: str) -> bool:
    found = limits.find_hierarchies()
    available = [each.levels[0].available for each in found if each.version == 2]
    return any(name in names for names in (*available, *(each.controllers for each in found)))
