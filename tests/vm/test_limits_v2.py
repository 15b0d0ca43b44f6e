"""Limits on cgroup v2, which holds all controllers in the virtual machine, and raised rlimits."""

from typing import Iterator

import pytest
from vm import Vm

pytestmark = pytest.mark.vm

RUN = "hpcwrap run --user alice"
FILL = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null"
OWN = "cd /sys/fs/cgroup"
SLEEPING = "pgrep -x sleep"


@pytest.fixture(scope="module", autouse=True)
def environment(vm: Vm) -> None:
    """An image of busybox."""
    vm.add_image("limits")
    vm.add_environment("limits", image="limits")


@pytest.fixture(autouse=True)
def nothing_is_left(vm: Vm) -> Iterator[None]:
    """However a run ends, its cgroup and directory go (Slurm's epilog comes when it comes)."""
    yield
    assert vm.need("find /sys/fs/cgroup -name 'hpcwrap*'; ls -d /run/hpcwrap/jobs/run-* || :") == ""


def test_what_is_asked_for_is_what_the_kernel_has(vm: Vm) -> None:
    options = "--memory 64m --swap 0 --cpus 0.5 --cpuset 1 --pids 30 --hugetlb 4m"
    files = "memory.max memory.swap.max cpu.max cpuset.cpus.effective pids.max hugetlb.2MB.max"
    inside = vm.need(f"{RUN} {options} limits -- sh -c '{OWN}; nproc; cat {files}'")
    assert inside.splitlines() == [
        *("1", str(64 << 20), "0", "50000 100000", "1", "30", str(4 << 20))
    ]


def test_reaching_the_memory_limit_is_told(vm: Vm) -> None:
    done = vm.run(f"{RUN} --memory 64m limits -- sh -c '{FILL}; exit $?'")
    assert done.code == 137
    assert "memory limit of 64 MiB: the kernel killed 1 of its processes" in done.stderr
    fits = vm.run(f"{RUN} --memory 400m limits -- sh -c '{FILL}; exit $?'")
    assert (fits.code, fits.stderr) == (0, "")


def test_processes_are_counted(vm: Vm) -> None:
    done = vm.run(
        f"{RUN} --pids 3 limits -- sh -c 'for n in 1 2 3 4; do sleep 99 & done; echo all'"
    )
    assert done.code != 0
    assert "all" not in done.stdout
    assert "limit of 3 processes and threads: the kernel refused 1 more" in done.stderr
    assert vm.run(SLEEPING).stdout == "", "what is left ends with the run"


def test_a_user_cannot_leave(vm: Vm) -> None:
    top = "/sys/fs/cgroup/cgroup.procs"
    ways = f"echo 0 >{top}; echo max >memory.max; mkdir x"
    inside = vm.run(f"{RUN} --memory 64m limits -- sh -c '{OWN}; {ways}; cat memory.max'")
    assert inside.stdout.splitlines() == [str(64 << 20)]
    assert inside.stderr.count("ead-only file system") == 3
    done = vm.run(f"{RUN} --memory 64m limits -- unshare -Ur sh -c 'echo 0 >{top}'")
    assert "ead-only file system" in done.stderr


def test_its_cgroup_is_the_top_of_all_that_is_seen(vm: Vm) -> None:
    ask = (
        "cat /proc/self/cgroup; grep -c . /sys/fs/cgroup/cgroup.procs; "
        "grep cgroup2 /proc/self/mountinfo"
    )
    said = vm.need(f"{RUN} --memory 64m limits -- sh -c '{ask}'").splitlines()
    assert said[0] == "0::/"
    assert int(said[1]) >= 1
    mounted = [line.split()[3:5] for line in said[2:]]
    assert ["/", "/sys/fs/cgroup"] in mounted


def test_cpus_that_are_not_there(vm: Vm) -> None:
    done = vm.run(f"{RUN} --cpuset 0-7 limits -- echo ran")
    assert (done.code, done.stdout) == (2, "")
    assert "cannot give the job the CPUs 0-7: there are 0-1" in done.stderr


@pytest.fixture(name="killed")
def a_killed_run(vm: Vm) -> str:
    """The job of a run that was killed, and whose command goes on."""
    return vm.need(
        f"setsid {RUN} --pids 20 limits -- sh -c 'trap : TERM; setsid sleep 4321 & wait' "
        "</dev/null >/dev/null 2>&1 & echo $! >/tmp/run.pid; "
        f"until {SLEEPING} >/dev/null; do sleep 0.1; done; kill -9 $(cat /tmp/run.pid); "
        f"{SLEEPING} >/dev/null && ls /run/hpcwrap/jobs"
    ).strip()


@pytest.mark.usefixtures("killed")
def test_a_killed_run_is_ended_by_the_next(vm: Vm) -> None:
    vm.need(f"{RUN} limits -- true")
    assert vm.run(SLEEPING).stdout == ""


def test_a_kernel_that_cannot_kill_a_cgroup_freezes_it(vm: Vm, killed: str) -> None:
    script = (
        "import sys; sys.path.insert(0, '/hpcwrap'); from hpcwrap import epilog; "
        "from hpcwrap.container import limits; limits.KILL = 'as-before-5.14'; "
        f"epilog.epilog('{killed}')"
    )
    vm.need(f'python3 -I -c "{script}"')
    assert vm.run(SLEEPING).stdout == ""


def test_controllers_are_handed_down_and_sessions_stay_in_the_way(vm: Vm) -> None:
    """As on a login node: a slice without processes, in it the session that we are in."""
    vm.need("mkdir -p /sys/fs/cgroup/user.slice/session.scope")
    try:
        done = vm.need(
            "echo $$ >/sys/fs/cgroup/user.slice/session.scope/cgroup.procs; "
            "until find /sys/fs/cgroup -path '*/hpcwrap-run-*/pids.max' | grep .; do :; done & "
            f"{RUN} --memory 64m --pids 9 limits -- sh -c '{OWN}; sleep 1; cat memory.max'; wait; "
            "cat /sys/fs/cgroup/user.slice/cgroup.subtree_control; "
            "cat /proc/self/cgroup; echo $$ >/sys/fs/cgroup/cgroup.procs"
        ).splitlines()
        assert done[0].startswith("/sys/fs/cgroup/user.slice/hpcwrap-run-")
        assert done[1:] == [str(64 << 20), "memory pids", "0::/user.slice/session.scope"]
    finally:
        vm.need("rmdir /sys/fs/cgroup/user.slice/session.scope /sys/fs/cgroup/user.slice")


def test_a_controller_that_is_not_handed_to_us(vm: Vm) -> None:
    vm.need("echo -hugetlb >/sys/fs/cgroup/cgroup.subtree_control")
    vm.need("mkdir /sys/fs/cgroup/small")
    try:
        done = vm.run(
            "echo $$ >/sys/fs/cgroup/small/cgroup.procs; unshare -C -m sh -c '"
            "umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; "
            f"{RUN} --hugetlb 4m limits -- echo ran'"
        )
        assert done.code == 3
        assert done.stdout == ""
        assert "cannot limit the job's hugetlb: cgroups have no controller hugetlb" in done.stderr
    finally:
        vm.need("rmdir /sys/fs/cgroup/small; echo +hugetlb >/sys/fs/cgroup/cgroup.subtree_control")


def test_limits_that_somebody_takes_away_are_told(vm: Vm) -> None:
    """As systemd does, when none of a slice's units uses the controller."""
    vm.need("mkdir -p /sys/fs/cgroup/user.slice/session.scope")
    try:
        done = vm.run(
            "echo $$ >/sys/fs/cgroup/user.slice/session.scope/cgroup.procs; rm -f /tmp/go; "
            f"({RUN} --pids 9 limits -- sh -c 'touch /tmp/up; until test -e /tmp/go; do :; done'; "
            "echo $? >/tmp/code) & until test -e /tmp/up; do sleep 0.1; done; "
            "echo -pids >/sys/fs/cgroup/user.slice/cgroup.subtree_control; touch /tmp/go; wait; "
            "rm -f /tmp/up; echo $$ >/sys/fs/cgroup/cgroup.procs; exit $(cat /tmp/code)"
        )
        assert done.code == 0
        assert "hpcwrap: warning: the job had lost limits before its end" in done.stderr
        assert "/pids.max away" in done.stderr
    finally:
        vm.need("rmdir /sys/fs/cgroup/user.slice/session.scope /sys/fs/cgroup/user.slice")


def test_shared_memory_counts(vm: Vm) -> None:
    vm.add_environment("shared", image="limits", shm_size="100m")
    used = vm.need(
        f"{RUN} --memory 200m shared -- "
        f"sh -c 'head -c 50m /dev/zero >/dev/shm/full; {OWN}; cat memory.current; df -k /dev/shm'"
    ).splitlines()
    assert 50 << 20 < int(used[0]) < 100 << 20
    assert used[-1].split()[1] == str(100 << 10)
    assert vm.run("ls /dev/shm/full").code != 0


def test_huge_pages(vm: Vm) -> None:
    """hugetlbfs comes along with /dev, and its pages are limited on their own."""
    vm.need(
        "mkdir -p /dev/hugepages; mount -t hugetlbfs none /dev/hugepages; "
        "echo 4 >/proc/sys/vm/nr_hugepages; chmod 1777 /dev/hugepages"
    )
    try:
        grow = "fallocate -l 2m /dev/hugepages/one && fallocate -l 6m /dev/hugepages/three"
        ask = f"mount | grep hugetlbfs; {grow}; ls -l /dev/hugepages; rm -f /dev/hugepages/*"
        done = vm.run(f"{RUN} --hugetlb 4m limits -- sh -c '{ask}'")
        assert "on /dev/hugepages type hugetlbfs" in done.stdout
        assert "one" in done.stdout
        assert "No space left" in done.stderr
    finally:
        vm.need("echo 0 >/proc/sys/vm/nr_hugepages; umount /dev/hugepages; rmdir /dev/hugepages")


def test_rlimits_are_raised_by_root(vm: Vm) -> None:
    vm.add_environment("raised", image="limits", rlimits=["memlock=unlimited", "nofile=2k:64k"])
    inside = vm.need(
        f"ulimit -l 64; ulimit -n 1000; {RUN} raised -- sh -c 'ulimit -l; ulimit -n; ulimit -Hn'"
    )
    assert inside.split() == ["unlimited", "2048", "65536"]


@pytest.mark.usefixtures("slurm")
def test_the_check_of_setup_sees_what_slurm_enforces(vm: Vm) -> None:
    lines = [line.split() for line in vm.run("hpcwrap setup slurm --check").stdout.splitlines()]
    told = {words[2]: words[0] for words in lines if len(words) > 2}
    constrained = {state for key, state in told.items() if key.startswith("Constrain")}
    assert {told["TaskPlugin"], told["ProctrackType"], *constrained} == {"ok"}
    assert len([key for key in told if key.startswith("Constrain")]) == 4


@pytest.mark.usefixtures("slurm")
def test_limits_of_the_submit_host_do_not_come_over_raised_ones(vm: Vm) -> None:
    """slurmstepd would set soft limits that srun saw (PropagateResourceLimits)."""
    vm.add_environment("raised", image="limits", rlimits=["memlock=unlimited", "nofile=2k:64k"])
    found = vm.need(
        "cd /tmp; ulimit -S -n 100; ulimit -l 64; "
        "setpriv --reuid=alice --regid=alice --init-groups srun --mem=64 --container=raised "
        "sh -c 'ulimit -l; ulimit -n; ulimit -Hn'"
    )
    assert found.split() == ["unlimited", "2048", "65536"]
