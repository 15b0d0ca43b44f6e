"""Each kind of leftover, planted: doctor names it, --repair removes it, and a running job stays.

In a UTS namespace of its own: what belongs to "this node" is told by that and by its name, and
other tests' containers share the machine's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest
from containers import ALICE, Container, Make

from hpcwrap import owners, paths, record, snapshot
from hpcwrap.config import Settings
from hpcwrap.container import build, cgroups, limits, namespaces, syscalls
from hpcwrap.finding import NOTE, WRONG
from hpcwrap.image import lease
from hpcwrap.image.store import Store
from hpcwrap.image.workspace import ensure_store
from hpcwrap.job import Limits
from hpcwrap.paths import JobPaths
from hpcwrap.schedulers import slurm_status
from hpcwrap.verbs import leftovers, leftovers_files, leftovers_jobs
from hpcwrap.verbs.leftover import Node

pytestmark = pytest.mark.privileged

CLONE_NEWUTS = 0x04000000
NODE = f"leftovers-{os.getpid()}"
DIGEST = "sha256:" + "ab" * 32
RUNNING, LIMITED = "1", Limits(pids=50)
GONE = 2**22 + 1
"""No process has this number: it is above the highest that proc_sys_kernel(5) allows."""


@pytest.fixture(scope="module", autouse=True)
def own_name() -> Iterator[None]:
    """A node of its own name."""
    home = os.open("/proc/self/ns/uts", os.O_RDONLY)
    syscalls.unshare(CLONE_NEWUTS)
    socket.sethostname(NODE)
    yield
    syscalls.setns(home, CLONE_NEWUTS)
    os.close(home)


@pytest.fixture(name="node")
def make_node(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node of Slurm whose files are the test's, and a store."""
    run = tmp_path / "run"
    monkeypatch.setattr(paths, "RUN", str(run))
    monkeypatch.setattr(paths, "JOBS", str(run / "jobs"))
    monkeypatch.setattr(paths, "SNAPSHOTS", str(run / "snapshots"))
    monkeypatch.setattr(paths, "LIBRARIES", str(run / "libraries"))
    monkeypatch.setattr(paths, "HELPER_SOCKET", str(run / "helper.sock"))
    monkeypatch.setattr(paths, "SLURM_TABLE", str(tmp_path / "table" / "table.lua"))
    settings = Settings(store=str(tmp_path / "store"), log=str(tmp_path / "log" / "jobs.jsonl"))
    monkeypatch.setattr(snapshot, "load_settings", lambda: settings)
    monkeypatch.setattr(slurm_status, "read_ids", lambda _settings: frozenset((RUNNING,)))
    ensure_store(Store(settings.store))
    return Node(settings, "slurm")


@pytest.fixture(name="store")
def find_store(node: Node) -> Store:
    return Store(node.settings.store)


@pytest.fixture(autouse=True)
def running(node: Node, store: Store, make: Make) -> Iterator[Container]:
    """A job that runs, with all that a job may have; after the test it has all of it still."""
    container = make(user_namespace=True)
    place = container.place
    assert os.path.basename(place.directory) == RUNNING
    record.write_record(place, record_of(RUNNING))
    limits.make(LIMITED, place)
    lease.hold(store, DIGEST, NODE, RUNNING)
    inside = subprocess.Popen(
        [str(container.program), place.directory, "--", "/bin/sleep", "100"],
        user=ALICE.uid,
        group=ALICE.gid,
        extra_groups=list(ALICE.groups),
    )
    limits.join(place, inside.pid)
    try:
        yield container
        assert inside.poll() is None
        assert container.run("true").code == 0
        assert [one.job for one in lease.holders(store, DIGEST)] == [RUNNING]
        assert cgroups_of(RUNNING)
    finally:
        limits.release(place)
    assert inside.wait(10) == -signal.SIGKILL


def record_of(job: str) -> record.Record:
    texts = ("slurm", NODE, "alice", "test", "--container", "test:1", DIGEST)
    return record.Record(job, *texts, started=1.0, milliseconds={"prolog": 1.0})


def cgroups_of(job: str) -> List[str]:
    name = f"hpcwrap-{job}-{NODE}"
    tops = [each.mount for each in cgroups.find_hierarchies()]
    found = [path for top in tops for path in leftovers_jobs.directories(top, leftovers_jobs.DEPTH)]
    return [path for path in found if os.path.basename(path) == name]


def found(node: Node) -> List[Tuple[str, str]]:
    """Kind and place of all that is wrong."""
    return [(each.kind, each.where) for each in leftovers.find(node) if each.state == WRONG]


def repaired(node: Node) -> List[Tuple[str, str]]:
    """Kind and place of what a repair removed; another finds nothing."""
    removed = [(each.kind, each.where) for each in leftovers.repair(node)]
    assert found(node) == []
    assert list(leftovers.repair(node)) == []
    return removed


def place_of(job: str) -> JobPaths:
    return JobPaths(job, paths.JOBS)


def test_nothing_is_found_where_a_job_runs(node: Node) -> None:
    assert list(leftovers.find(node)) == []
    assert list(leftovers.repair(node)) == []


# ---- jobs ----


@pytest.mark.parametrize("user_namespace", [False, True])
def test_pins_and_record_of_a_job_that_slurm_has_forgotten(
    node: Node, make: Make, *, user_namespace: bool
) -> None:
    container = make(user_namespace=user_namespace)
    record.write_record(container.place, record_of("2"))
    (left,) = leftovers.find(node)
    assert (left.kind, left.where) == ("job", container.place.directory)
    assert "slurm does not know it any more; it has a pinned mount namespace" in left.detail
    assert ("a pinned user namespace" in left.detail) == user_namespace
    assert repaired(node) == [("job", container.place.directory)]
    assert node.jobs == [RUNNING]
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        assert f"{container.place.directory}/" not in mounts.read()
    assert '"job": "2"' in Path(node.settings.log).read_text()


def test_a_job_that_is_requeued_meanwhile_is_not_ended(node: Node, make: Make) -> None:
    container = make(user_namespace=False)
    place = container.place
    (left,) = leftovers.find(node)
    build.release(place)
    record.remove(place)
    os.makedirs(place.directory)
    build.build(container.plan, place)
    assert not left.remove()
    assert namespaces.is_mount_point(place.mount_namespace)


def test_a_job_of_which_slurm_says_nothing_is_left_alone(
    node: Node, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_settings: Settings) -> None:
        raise ConnectionError("Unable to contact slurm controller")

    make(user_namespace=False)
    monkeypatch.setattr(slurm_status, "read_ids", down)
    (left,) = leftovers.find(node)
    assert left.finding == ("leftovers", "jobs that have ended", WRONG, left.detail)
    assert "Unable to contact" in left.detail
    assert list(leftovers.repair(node)) == []
    assert node.jobs == [RUNNING, "2"]


def test_a_job_of_pbs_that_its_mom_does_not_have(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pbs_mom makes the file of a job a while after the directory."""
    monkeypatch.setenv("PBS_CONF_FILE", str(tmp_path / "pbs.conf"))
    (tmp_path / "pbs.conf").write_text(f"PBS_HOME={tmp_path}/pbs\n")
    known = tmp_path / "pbs" / "mom_priv" / "jobs"
    known.mkdir(parents=True)
    (known / "7.server.JB").touch()
    for name in ("7.server", "8.server", "9.server"):
        place = place_of(f"pbs-{name}")
        os.makedirs(place.namespaces)
        os.utime(place.directory, None if name == "9.server" else (0, 0))
    pbs = node._replace(scheduler="pbs")
    assert found(pbs) == [("job", f"{paths.JOBS}/pbs-8.server")]
    assert repaired(pbs) == [("job", f"{paths.JOBS}/pbs-8.server")]
    assert pbs.jobs == [RUNNING, "pbs-7.server", "pbs-9.server"]
    for name in ("7.server", "9.server"):
        record.remove(place_of(f"pbs-{name}"))


def test_a_job_whose_owners_are_gone(node: Node) -> None:
    place = place_of("local-5")
    os.makedirs(place.owners)
    Path(place.owners, f"{GONE}-1").touch()
    assert found(node) == [("job", place.directory)]
    assert repaired(node) == [("job", place.directory)]


def test_a_directory_that_a_killed_prolog_left(node: Node) -> None:
    place = place_of("lsf-5")
    os.makedirs(place.namespaces)
    with held_turn(place):
        assert found(node) == []
    (left,) = leftovers.find(node)
    assert (left.kind, left.where) == ("job", place.directory)
    assert "neither record nor error" in left.detail
    assert repaired(node) == [("job", place.directory)]


def test_a_job_that_waits_to_tell_its_error_is_no_leftover(node: Node) -> None:
    record.write_error(place_of("lsf-5"), "no such image")
    assert found(node) == []
    record.remove(place_of("lsf-5"))


class held_turn:  # noqa: N801  a with statement's word
    """Another process has a job's turn."""

    def __init__(self, place: JobPaths) -> None:
        self.place = place

    def __enter__(self) -> None:
        ready, told = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            with owners.turn(self.place):
                os.write(told, b"1")
                signal.pause()
        assert os.read(ready, 1) == b"1"

    def __exit__(self, *_: object) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


# ---- mounts, processes, cgroups ----


def test_a_pin_of_no_job(node: Node) -> None:
    path = f"{paths.JOBS}/pin"
    assert namespaces.pin(os.getpid(), "uts", path)
    assert found(node) == [("pin", path)]
    assert repaired(node) == [("pin", path)]
    os.unlink(path)


def test_a_mount_of_no_job(node: Node) -> None:
    stage = f"{paths.RUN}/stage"
    syscalls.mount("hpcwrap", stage, "tmpfs", 0, "size=1m")
    syscalls.mount("hpcwrap", stage, "tmpfs", 0, "size=1m")
    assert found(node) == [("mount", stage)]
    assert repaired(node) == [("mount", stage)]
    assert not namespaces.is_mount_point(stage)


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_process_in_a_container_whose_job_is_gone(node: Node, make: Make) -> None:
    container = make(user_namespace=True)
    argv = [str(container.program), container.place.directory, "--", "/bin/sleep", "100"]
    child = subprocess.Popen(argv, user=ALICE.uid, group=ALICE.gid, extra_groups=list(ALICE.groups))
    assert eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n")
    build.release(container.place)
    record.remove(container.place)
    assert found(node) == [("process", f"process {child.pid}")]
    assert repaired(node) == [("process", f"process {child.pid}")]
    child.wait(10)


def test_a_process_that_made_a_mount_namespace_of_its_own_inside_is_the_jobs(
    node: Node, running: Container
) -> None:
    """A sandbox in a running job, say: nobody has pinned that."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        own = os.open(running.place.mount_namespace, os.O_RDONLY)
        syscalls.setns(own, syscalls.CLONE_NEWNS)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        os.write(told, b"1")
        # As another program: ours is taken for a builder.
        os.execv("/bin/sleep", ["sleep", "100"])
    try:
        assert os.read(ready, 1) == b"1"
        assert eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
        assert found(node) == []
        assert list(leftovers.repair(node)) == []
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_holds_a_namespace_of_no_job(
    node: Node, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "pin", lambda *_: False)
    place = make(user_namespace=False).place
    holder = Path(place.holder).read_text().split()[0]
    record.remove(place)
    assert found(node) == [("process", f"process {holder}")]
    assert repaired(node) == [("process", f"process {holder}")]


@pytest.mark.parametrize("inside", [False, True])
def test_a_cgroup_of_no_job(node: Node, *, inside: bool) -> None:
    place = place_of("lsf-9")
    os.makedirs(place.directory)
    limits.make(LIMITED, place)
    with subprocess.Popen(["sleep", "100"]) as child:
        if inside:
            limits.join(place, child.pid)
        record.remove(place)
        expected = [("cgroup", " ".join(cgroups_of("lsf-9")))]
        assert found(node) == expected
        if not inside:
            assert list(leftovers.repair(node)) == []  # another node's of that name, perhaps
            for path in cgroups_of("lsf-9"):
                os.utime(path, (0, 0))
        assert repaired(node) == expected
        assert eventually(lambda: child.poll() is not None) if inside else child.poll() is None
        child.kill()
    assert cgroups_of("lsf-9") == []


# ---- the store ----


def test_a_loop_device_that_the_kernel_does_not_free(node: Node, store: Store) -> None:
    image = Path(store.squashfs_path(DIGEST))
    image.write_bytes(bytes(1 << 20))
    Path(store.document_path(DIGEST)).write_text("{}")
    attach = ["losetup", "--read-only", "--find", "--show", str(image)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    assert found(node) == [("loop device", device)]
    assert repaired(node) == [("loop device", device)]
    assert str(image) not in leftovers_files.bound_files().values()


@pytest.mark.parametrize("job", ["lsf-8", f"export-{GONE}"])
def test_a_lease_of_a_job_that_is_gone(node: Node, store: Store, job: str) -> None:
    lease.hold(store, DIGEST, NODE, job)
    lease.hold(store, DIGEST, "another", "lsf-8")
    lease.hold(store, DIGEST, NODE, f"export-{os.getpid()}")
    directory = f"{store.leases_directory}/{DIGEST[7:]}"
    assert found(node) == [("lease", directory)]
    assert repaired(node) == [("lease", directory)]
    left = {(one.node, one.job) for one in lease.holders(store, DIGEST)}
    assert left == {("another", "lsf-8"), (NODE, f"export-{os.getpid()}"), (NODE, RUNNING)}
    lease.drop(store, DIGEST, "another", "lsf-8")
    lease.drop(store, DIGEST, NODE, f"export-{os.getpid()}")


def test_a_prolog_that_pulls_still_has_its_lease(node: Node, store: Store) -> None:
    with held_turn(place_of("lsf-8")):
        lease.hold(store, DIGEST, NODE, "lsf-8")
        assert found(node) == []
        lease.drop(store, DIGEST, NODE, "lsf-8")


def test_files_of_killed_pulls(node: Node, store: Store) -> None:
    file = Path(store.images_directory, ".abc.sqsh.x1y2")
    file.touch()
    directory = Path(store.tmp_directory, "pull-x")
    directory.mkdir()
    lock = Path(store.locks_directory, "image-" + "cd" * 32)
    lock.touch()
    assert set(found(node)) == {("half-made file", str(file)), ("half-made file", str(directory))}
    notes = [each.where for each in leftovers.find(node) if each.state == NOTE]
    assert notes == [str(lock)]
    repaired(node)
    assert not file.exists()
    assert not directory.exists()
    assert not lock.exists()


# ---- the node's own files ----


def test_files_that_nobody_renames_any_more(node: Node) -> None:
    snapshots = Path(paths.SNAPSHOTS)
    snapshots.mkdir()
    old, young = snapshots / "a.json.new", snapshots / "b.json.new"
    for each in (old, young):
        each.touch()
    os.utime(old, (0, 0))
    link, own = Path(paths.RUN, f"good-cpu.{GONE}"), Path(paths.RUN, f"good-cpu.{os.getpid()}")
    for each in (link, own):
        each.symlink_to("1")
    expected = [("half-made file", str(link)), ("half-made file", str(old))]
    assert found(node) == expected
    assert repaired(node) == expected
    assert young.exists()
    assert own.is_symlink()


def test_a_socket_on_which_nobody_listens(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.HELPER_SOCKET)
        listener.listen()
        assert found(node) == []
    assert found(node) == [("socket", paths.HELPER_SOCKET)]
    assert repaired(node) == [("socket", paths.HELPER_SOCKET)]
    assert not os.path.exists(paths.HELPER_SOCKET)
