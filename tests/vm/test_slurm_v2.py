"""Slurm with task/cgroup on cgroup v2: its limits hold in a container, and no others are made."""

import pytest
from vm import Slurm, Vm

pytestmark = pytest.mark.vm

OWN = "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)"


@pytest.fixture(scope="module", autouse=True)
def environment(vm: Vm) -> None:
    vm.add_image("slurm")
    vm.add_environment("slurm", image="slurm")


def test_a_rank_is_in_the_steps_cgroup(slurm: Slurm) -> None:
    done = slurm.srun("slurm", "cat /etc/os-release /proc/self/cgroup")
    image, cgroup = done.stdout.splitlines()
    assert "made in the machine" in image
    assert cgroup.startswith("0::/system.slice/vm_slurmstepd.scope/job_")


def test_the_steps_limits_are_seen_inside(slurm: Slurm) -> None:
    step = f"{OWN}/.."
    done = slurm.srun("slurm", f"cat {step}/memory.max; nproc; cat {step}/cpuset.cpus.effective")
    assert done.stdout.splitlines() == [str(64 << 20), "1", "0"], done.stderr


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
