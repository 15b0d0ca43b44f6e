"""One virtual machine for all tests that need one."""

from typing import Iterator, List

import pytest
from vm import Slurm, Vm, make

# The first test of a run waits until the machine is made and up, perhaps beside a build.
FIRST_SECONDS = 900


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Give tests in the machine their time."""
    for item in items:
        if item.get_closest_marker("vm"):
            item.add_marker(pytest.mark.timeout(FIRST_SECONDS))


@pytest.fixture(scope="session", name="vm")
def virtual_machine() -> Iterator[Vm]:
    """The machine, up."""
    vm = make()
    yield vm
    vm.stop()


@pytest.fixture(scope="session", name="slurm")
def slurm_of_one_node(vm: Vm) -> Slurm:
    """Slurm in the machine, which holds jobs to their limits by cgroup v2."""
    vm.need("python3 -I /hpcwrap/tests/vm/slurm_in_vm.py")
    return Slurm(vm)
