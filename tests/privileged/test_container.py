"""Containers as they are: built for real, and looked at from inside."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from containers import ALICE, BOB, ENTER, Hostile, Make, bound_files, run_as

from hpcwrap import record
from hpcwrap.config import Settings
from hpcwrap.container import build, namespaces, rootfs, syscalls
from hpcwrap.container.addition import Addition
from hpcwrap.container.operations import Commands, Workshop
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError

pytestmark = pytest.mark.privileged

both_ways = pytest.mark.parametrize("user_namespace", [False, True], ids=["host", "userns"])


def bind(source: object, target: str, *options: str) -> Mount:
    return Mount(str(source), target, "bind", options, "environments.d/test.yaml:3")


@both_ways
def test_the_user_is_the_same_inside(make: Make, user_namespace: bool) -> None:
    inside = make(user_namespace=user_namespace).run("id")
    assert "uid=42001(alice) gid=42001" in inside.stdout
    assert "43001" in inside.stdout


@both_ways
def test_files_made_inside_belong_to_the_user(
    make: Make, user_namespace: bool, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, ALICE.uid, ALICE.gid)
    container = make(user_namespace=user_namespace, workdir=str(work))
    assert container.run("touch", "new", cwd=str(work)).code == 0
    assert (work / "new").stat().st_uid == ALICE.uid


@both_ways
def test_the_root_is_read_only_and_the_image_is_seen(make: Make, user_namespace: bool) -> None:
    container = make(user_namespace=user_namespace)
    assert container.run("busybox").code == 0
    refused = container.run("touch", "/new")
    assert "Read-only file system" in refused.stderr


@both_ways
def test_no_mount_honours_set_user_id_programs(make: Make, user_namespace: bool) -> None:
    container = make(user_namespace=user_namespace)
    lines = container.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if "nosuid" not in line.split()[5].split(",")] == []
    assert "uid=0" not in container.run("setuid", "id").stdout


@both_ways
def test_accounts_of_image_and_job_are_joined(make: Make, user_namespace: bool) -> None:
    passwd = make(user_namespace=user_namespace).run("cat", "/etc/passwd").stdout.splitlines()
    assert passwd[0] == "alice:x:42001:42001:alice:/home/alice:/bin/sh"
    assert passwd[1:] == ["root:x:0:0:root:/root:/bin/sh"]


@both_ways
def test_a_dangling_link_gives_way_to_the_hosts_file(make: Make, user_namespace: bool) -> None:
    inside = make(user_namespace=user_namespace).run("cat", "/etc/resolv.conf")
    assert inside.stdout == Path("/etc/resolv.conf").read_text()


def test_another_user_cannot_join(make: Make) -> None:
    container = make(user_namespace=True)
    os.chmod(container.place.entry, 0o644)
    refused = container.run("id", user=BOB)
    assert refused.code == 125
    assert "cannot join the container's user namespace" in refused.stderr


def test_mounts_cannot_be_taken_off_by_the_user(make: Make) -> None:
    container = make(user_namespace=True)
    for path in ("/proc", "/dev", "/sys"):
        assert container.run("umount", path).code != 0


def test_environment_of_a_command(make: Make) -> None:
    container = make(user_namespace=True, variables=["PATH=/opt/app:/bin", "KIND=image"])
    variables = container.run("env").stdout.splitlines()
    assert "FROM_HOST=yes" in variables
    assert "KIND=image" in variables
    assert "PATH=/opt/app:/bin" in variables
    assert "HPCWRAP_CONTAINER=test@sha256:0" in variables


@both_ways
def test_mount_through_a_link_of_the_image_stays_inside(
    make: Make, user_namespace: bool, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    source.joinpath("here").touch()
    container = make([bind(source, "/data/deep")], user_namespace=user_namespace)
    assert container.run("ls", "/data/deep").stdout == "here\n"
    assert not Path("/outside").exists()


@pytest.fixture(name="victim")
def directory_of_root(tmp_path: Path) -> Path:
    """A directory of the host that is root's alone, below /tmp, which every container mounts."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "passwd").write_text("root:SECRET:0:0::/:\n")
    return victim


def content(directory: Path) -> "dict[str, str]":
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_root_writes_nothing_where_a_link_of_the_image_leads(
    make: Make, hostile: Hostile, victim: Path
) -> None:
    before = content(victim)
    container = make(user_namespace=False, image=hostile("etc", str(victim)))
    assert content(victim) == before
    assert "alice" in container.run("cat", "/etc/passwd").stdout


def test_root_reads_nothing_where_a_link_of_the_image_leads(
    make: Make, hostile: Hostile, victim: Path
) -> None:
    image = hostile("etc/passwd", str(victim / "passwd"))
    inside = make(user_namespace=False, image=image).run("cat", "/etc/passwd")
    assert "alice" in inside.stdout
    assert "SECRET" not in inside.stdout


def test_root_makes_no_mount_point_in_a_mount_of_the_host(make: Make, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(SiteError, match=r"cannot make /data1/new.* in a mount of the host"):
        make([bind(source, "/data1"), bind("/usr", "/data1/new/deep")], user_namespace=False)
    assert list(source.iterdir()) == []


def test_commands_in_a_directory_of_the_host_leave_its_files_alone(
    make: Make, tmp_path: Path
) -> None:
    directory = tmp_path / "slurm"
    directory.mkdir()
    (directory / "srun").write_text("the host's")
    os.chown(directory, ALICE.uid, ALICE.gid)
    commands = Commands(str(directory), ("srun",), str(ENTER))
    container = make(user_namespace=False, workdir=str(directory), commands=commands)
    assert (directory / "srun").read_text() == "the host's"
    inside = container.run("stat", "-c", "%s", f"{directory}/srun").stdout
    assert int(inside) == ENTER.stat().st_size


def test_commands_that_the_image_lacks_are_there(make: Make) -> None:
    container = make(user_namespace=False, commands=Commands("/usr/bin", ("srun",), str(ENTER)))
    assert container.run("ls", "/usr/bin").stdout == "srun\n"
    assert container.run("ls", "/.host/usr").code == 0


def test_users_cannot_hold_the_lock_of_the_prologs(make: Make) -> None:
    container = make(user_namespace=False)
    lock = f"{os.path.dirname(container.place.directory)}.lock"
    assert os.path.exists(lock)
    assert "Permission denied" in run_as(["flock", lock, "true"], ALICE).stderr


def test_a_loop_of_links_in_the_image_is_an_error_of_the_mount(make: Make, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"bind .* on /loop/x .*test.yaml:3.*symbolic links"):
        make([bind(tmp_path, "/loop/x")], user_namespace=False)


@both_ways
def test_mounts_have_their_options(make: Make, user_namespace: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir(mode=0o777)
    source.chmod(0o777)
    mounts = [bind(source, "/rw"), bind(source, "/ro", "ro"), bind("/nowhere", "/gone", "nofail")]
    mounts.append(Mount("tmpfs", "/scratch", "tmpfs", ("size=1m", "mode=1777"), "test.yaml:9"))
    container = make(mounts, user_namespace=user_namespace)
    assert container.run("touch", "/rw/x", "/scratch/x").code == 0
    assert "Read-only" in container.run("touch", "/ro/y").stderr
    assert container.run("ls", "/gone").code != 0


def test_a_file_can_be_mounted(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "licence"
    file.write_text("42\n")
    container = make([bind(file, "/etc/app/licence", "ro")], user_namespace=False)
    assert container.run("cat", "/etc/app/licence").stdout == "42\n"


def test_sources_are_opened_with_the_users_rights(make: Make, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.joinpath("data").mkdir(parents=True)
    private.chmod(0o700)
    with pytest.raises(SiteError, match=r"cannot open .*private/data for alice: Permission denied"):
        make([bind(private / "data", "/data2")], user_namespace=False)


def test_a_missing_source_names_the_line_that_asked_for_it(make: Make) -> None:
    with pytest.raises(SiteError) as raised:
        make([bind("/nowhere", "/x")], user_namespace=False)
    assert "/nowhere" in raised.value.sentence()
    assert "environments.d/test.yaml:3" in raised.value.sentence()


def test_home_is_there_with_the_users_rights(make: Make, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, ALICE.uid, ALICE.gid)
    user = ALICE._replace(home=str(home))
    container = make(user_namespace=False, user=user, settings=Settings())
    assert container.run("touch", f"{home}/x").code == 0


def test_a_work_directory_of_the_system_does_not_hide_the_image(make: Make) -> None:
    container = make(user_namespace=False, workdir="/etc")
    assert container.run("ls", "/etc/hostname").code != 0
    assert container.run("pwd", cwd="/etc").stdout == "/etc\n"


def test_containers_of_one_image_share_a_loop_device(make: Make, squashfs: Path) -> None:
    first, second = make(user_namespace=False), make(user_namespace=True)
    assert first.run("true").code == second.run("true").code == 0
    assert list(bound_files()).count(str(squashfs)) == 1
    for container in (first, second):
        build.release(container.place)
    assert eventually(lambda: str(squashfs) not in bound_files())


def test_a_process_inside_keeps_its_container_after_the_epilog(make: Make, squashfs: Path) -> None:
    container = make(user_namespace=True)
    command = [container.program, container.place.directory, "--", "sh", "-c"]
    with subprocess.Popen(
        [*command, "echo ready; read line; cat /etc/passwd"],
        user=ALICE.uid,
        group=ALICE.gid,
        extra_groups=list(ALICE.groups),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        build.release(container.place)
        build.release(container.place)
        assert not os.path.exists(container.place.mount_namespace)
        assert str(squashfs) in bound_files()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.stdout.readline().startswith("alice:")
    assert eventually(lambda: str(squashfs) not in bound_files())


def test_without_pins_a_holder_keeps_the_container(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: a kernel that lets no CPU's mount namespace be bound."""
    pin = namespaces.pin
    monkeypatch.setattr(namespaces, "pin", lambda *a: a[1] != "mnt" and pin(*a))
    for user_namespace in (False, True):
        container = make(user_namespace=user_namespace)
        holder = int(Path(container.place.holder).read_text().split()[0])
        assert os.path.exists(f"/proc/{holder}")
        assert "42001" in container.run("id").stdout
        build.release(container.place)
        assert eventually(lambda process=holder: not alive(process))


def test_a_killed_prolog_leaves_nothing_that_the_next_does_not_mend(
    make: Make, squashfs: Path, tmp_path: Path
) -> None:
    """Kill the builder at many moments; then nobody can get in, and the next build works."""
    for delay in (0.0, 0.002, 0.004, 0.006, 0.008, 0.012):
        container = make(user_namespace=False)
        os.unlink(container.place.entry)
        child = os.fork()
        if child == 0:
            build.release(container.place)
            build.build(container.plan, container.place)
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not os.path.exists(container.place.entry)
        build.release(container.place)
        build.build(container.plan, container.place)
        assert container.run("true").code == 0
        build.release(container.place)
        record.remove(container.place)
        assert not os.path.exists(container.place.directory)
    assert eventually(lambda: str(squashfs) not in bound_files())


def test_a_broken_image_is_said_to_be_broken(make: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqsh"
    broken.write_bytes(b"hsqs" + bytes(8192))
    with pytest.raises(Exception, match="broken"):
        make(user_namespace=False, image=broken)


@pytest.mark.parametrize("content", [b"", b"hpcwrap-entry-1\0", b"nonsense\0end\0"])
def test_a_broken_record_lets_nobody_in(make: Make, content: bytes) -> None:
    container = make(user_namespace=True)
    record.publish(container.place.entry, content, 0o644)
    refused = container.run("id")
    assert refused.code == 125
    assert "cannot read the record" in refused.stderr


class Endless:
    """An operation that an image keeps busy."""

    def describe(self) -> str:
        return "no end"

    def execute(self, workshop: Workshop) -> None:
        while True:
            rootfs.read_file(workshop.root, "/bin/busybox")


@both_ways
def test_a_build_without_end_ends_the_job_and_not_the_node(
    make: Make, user_namespace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PATIENCE", 1)
    with pytest.raises(SiteError, match="killed, or not done after 1 s"):
        make(user_namespace=user_namespace, additions=[Addition(operations=(Endless(),))])


def test_the_jobs_directory_is_private_and_made_once(tmp_path: Path) -> None:
    jobs = str(tmp_path / "run" / "jobs")
    for _ in range(2):
        namespaces.ensure_jobs_directory(jobs)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    mine = [line.split() for line in mounts if line.split()[4] == jobs]
    assert len(mine) == 1
    assert mine[0][6] == "-", "a shared mount cannot hold pins"
    syscalls.umount2(jobs, 0)


def test_prologs_that_start_together_make_the_jobs_directory_once(tmp_path: Path) -> None:
    for attempt in range(8):
        jobs = str(tmp_path / str(attempt) / "jobs")
        start, started = os.pipe()
        children = [fork_at(start, started, jobs) for _ in range(8)]
        os.close(start)
        os.close(started)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        assert len([line for line in mounts if line.split()[4] == jobs]) == 1
        syscalls.umount2(jobs, 0)


def fork_at(start: int, started: int, jobs: str) -> int:
    """A prolog that waits for the moment at which nobody holds `started` open any more."""
    child = os.fork()
    if child == 0:
        os.close(started)
        os.read(start, 1)
        namespaces.ensure_jobs_directory(jobs)
        os._exit(0)
    return child


def alive(process: int) -> bool:
    """False too for a child of ours that has ended."""
    stat = subprocess.run(["cat", f"/proc/{process}/stat"], capture_output=True, text=True).stdout
    return stat.rpartition(")")[2].split()[:1] not in ([], ["Z"])


def eventually(condition: "object", limit: float = 3.0) -> bool:
    """The kernel frees a detached mount's device a moment later."""
    until = time.monotonic() + limit
    while not condition():  # type: ignore[operator]
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
