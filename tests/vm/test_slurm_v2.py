"""Slurm with task/cgroup on cgroup v2: its limits hold in a container, and no others are made."""

import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from vm import REPOSITORY, Slurm, Vm

pytestmark = pytest.mark.vm

STEP = "/sys/fs/cgroup/step_0/user"
OPENMP = "/usr/local/bin/openmp"


@pytest.fixture(scope="module", autouse=True)
def environment(vm: Vm, tmp_path_factory: pytest.TempPathFactory) -> None:
    vm.add_file(OPENMP, compiled(REPOSITORY / "tests/openmp.c", tmp_path_factory.mktemp("openmp")))
    vm.add_image("slurm", OPENMP)
    vm.add_environment("slurm", image="slurm")


def compiled(source: Path, directory: Path) -> bytes:
    """A program with all its libraries in it, for the machine has neither compiler nor libgomp."""
    program = directory / "program"
    words = ["gcc", "-O2", "-s", "-static", "-fopenmp", "-o", str(program), str(source)]
    subprocess.run(words, check=True, capture_output=True)
    return program.read_bytes()


def test_a_rank_is_in_the_steps_cgroup(slurm: Slurm) -> None:
    ask = f"cat /etc/os-release; grep -cx $$ {STEP}/task_0/cgroup.procs"
    done = slurm.srun("slurm", ask)
    assert done.stdout.splitlines() == ["PRETTY_NAME='made in the machine'", "1"], done.stderr


def test_the_steps_limits_are_seen_inside(slurm: Slurm) -> None:
    """OpenMP starts as many threads as the rank has CPUs; the machine has two."""
    ask = f"cat {STEP}/memory.max; nproc; cat {STEP}/cpuset.cpus.effective; {OPENMP}"
    done = slurm.srun("slurm", ask)
    assert done.stdout.splitlines() == [str(64 << 20), "1", "0", "1 1 1"], done.stderr


def test_the_jobs_cgroup_is_the_top_of_all_that_is_seen(slurm: Slurm) -> None:
    """As JVMs up to 23 look: the mount, and the own cgroup below it, none of those between."""
    ask = "cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpuset.cpus.effective"
    done = slurm.srun("slurm", ask)
    assert done.stdout.splitlines() == ["0::/", str(64 << 20), "0"], done.stderr


def test_each_rank_and_step_of_a_job_sees_them(vm: Vm, slurm: Slurm) -> None:
    """The first rank mounts it, for all of them; the second step has less than the job."""
    ask = "cat /proc/self/cgroup /sys/fs/cgroup/memory.max"
    steps = f"srun -n2 sh -c '{ask}'; srun -n1 --mem=32 sh -c '{ask}'"
    user = "setpriv --reuid=alice --regid=alice --init-groups"
    options = "--wait --quiet -n2 --mem=64 --container=slurm --output=/tmp/steps-of-alice"
    done = vm.need(f'cd /tmp && {user} sbatch {options} --wrap "{steps}"; cat /tmp/steps-of-alice')
    assert sorted(done.split()) == sorted(["0::/", str(64 << 20)] * 3)


# Stands before the prolog's Python: says where a step's own is, and has it outlast the step.
PYTHON = """#!/bin/sh
if [ -n "$HPCWRAP_STEP_OWNER" ]; then
    cat /proc/self/cgroup /proc/self/oom_score_adj >/tmp/step-said
    sleep $(cat /tmp/step-sleeps)
    /usr/bin/python3 "$@"
    code=$?
    echo code $code >>/tmp/step-said
    exit $code
fi
exec /usr/bin/python3 "$@"
"""
OTHER = """
cd /tmp; echo {sleeps} >/tmp/step-sleeps; rm -f step-said
setpriv --reuid=alice --regid=alice --init-groups sbatch --wait --quiet --mem=64 \\
    --output=/tmp/other-of-alice --wrap 'srun --container=other sh -c "{ask}"' || :
until grep -s code /tmp/step-said; do sleep 0.1; done >/dev/null
cat /tmp/step-said /tmp/other-of-alice
find /sys/fs/cgroup -path '*/job_*/step_*' -name cgroup.procs
"""


@pytest.fixture
def told(vm: Vm, slurm: Slurm) -> Iterator[None]:
    """Prologs of steps say where they are."""
    vm.add_environment("other", image="slurm")
    vm.need("rm /opt/hpcwrap/bin/python3")
    vm.add_file("/opt/hpcwrap/bin/python3", PYTHON.encode())
    yield
    vm.need("ln -sf /usr/bin/python3 /opt/hpcwrap/bin/python3")
    vm.need("sed -i 's/ patience=.*//' /etc/slurm/plugstack.conf")


@pytest.mark.usefixtures("told")
def test_the_prolog_of_a_steps_own_container_is_in_no_cgroup_of_its_job(vm: Vm) -> None:
    """The ranks are; a prolog that outlasts its step leaves nothing there either."""
    ask = r"echo \${HPCWRAP_CONTAINER%%@*}; cat /sys/fs/cgroup/memory.max"
    where, rest = vm.need(OTHER.format(sleeps=0, ask=ask)).split("\n", 1)
    assert where.endswith("/system")
    assert rest.split() == ["0", "code", "0", "other", str(64 << 20)]
    vm.need("sed -i 's/.so$/& patience=1/' /etc/slurm/plugstack.conf")
    late = vm.need(OTHER.format(sleeps=6, ask="echo WRONG"))
    assert late.split("\n", 1)[0] == where
    assert "after 1 s the node is still at it" in late
    assert "WRONG" not in late
    assert "step_" not in late
    assert vm.need("ls /run/hpcwrap/jobs") == ""


def test_the_limit_holds_and_slurm_tells_of_it(slurm: Slurm) -> None:
    """A block of dd lies in memory as a whole."""
    done = slurm.srun("slurm", "dd if=/dev/zero of=/dev/null bs=200M count=1")
    assert done.code != 0
    assert "oom" in done.stderr.lower()


def test_hpcwrap_makes_no_cgroup_beside(vm: Vm, slurm: Slurm) -> None:
    slurm.srun("slurm", "true")
    assert vm.need("find /sys/fs/cgroup -name 'hpcwrap*'") == ""


def test_a_limit_on_locked_memory_is_the_environments(vm: Vm, slurm: Slurm) -> None:
    vm.add_environment("locked", image="slurm", rlimits=["memlock=unlimited"])
    assert slurm.srun("locked", "ulimit -l").stdout == "unlimited\n"
