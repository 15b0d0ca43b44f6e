"""One virtual machine for all tests that need one."""

from typing import Iterator

import pytest
from vm import Vm, make


@pytest.fixture(scope="session", name="vm")
def virtual_machine() -> Iterator[Vm]:
    """The machine, up."""
    vm = make()
    yield vm
    vm.stop()
