"""The virtual machine itself: what other tests count on."""

import pytest
from vm import Machine, ToolError, Vm

pytestmark = pytest.mark.vm


def test_all_controllers_are_of_cgroup_v2(vm: Vm) -> None:
    handed_down = vm.need("cat /sys/fs/cgroup/cgroup.subtree_control").split()
    assert {"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"} <= set(handed_down)


def test_a_script_has_its_code_and_both_outputs(vm: Vm) -> None:
    done = vm.run("echo out; echo err >&2; exit 7")
    assert done == (7, "out\n", "err\n")


def test_a_script_that_hangs_is_ended_with_its_children(vm: Vm) -> None:
    assert vm.run("sleep 1234 & wait", timeout=1).code == 124
    assert vm.run("pgrep -f 'sleep 1234'").stdout == ""


def test_a_long_answer_comes_whole(vm: Vm) -> None:
    assert len(vm.need("head -c 3000000 /dev/zero | tr '\\0' x")) == 3000000


def test_a_machine_that_does_not_boot_shows_its_console(vm: Vm) -> None:
    """Its root is no file system: the initramfs ends, and the kernel with it."""
    broken = vm.files._replace(root=vm.files.initramfs)
    machine = Machine(broken)
    try:
        with pytest.raises(ToolError, match=r"(?s)cannot boot.*its console ends:.*panic"):
            machine.start()
    finally:
        machine.stop()


def test_a_container_runs_in_it(vm: Vm) -> None:
    vm.add_image("plain")
    vm.add_environment("plain", image="plain")
    inside = vm.need("hpcwrap run --user alice plain -- sh -c 'id; cat /etc/os-release'")
    assert "uid=2001(alice)" in inside
    assert "made in the machine" in inside
