"""Devices of fabrics inside a container: as on the host, or not at all.

No such device is at hand: nodes with the numbers of /dev/null stand in for them, in a /dev of the
test's own.  What drives them is tested in the virtual machine (tests/vm/test_fabric.py).
"""

import os
import shutil
import stat
from pathlib import Path
from typing import Iterator

import pytest
from containers import BOB, Container, Make

from hpcwrap.container import syscalls
from hpcwrap.container.addition import Addition
from hpcwrap.container.fabric import no_fabric
from hpcwrap.container.operations import Commands

pytestmark = pytest.mark.privileged

both_ways = pytest.mark.parametrize("user_namespace", [False, True], ids=["host", "userns"])

NODES = ("infiniband/uverbs0", "infiniband/rdma_cm", "hfi1_0", "cxi0", "knem", "xpmem", "gdrdrv")
NULL = os.makedev(1, 3)


@pytest.fixture(scope="module", autouse=True)
def own_devices(own_mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A /dev with this machine's devices and those of fabrics; it goes with the namespace."""
    copy = tmp_path_factory.mktemp("dev")
    syscalls.mount("tmpfs", str(copy), "tmpfs", syscalls.MS_NOSUID, "mode=755")
    for name in ("null", "zero", "loop-control", *(f"loop{number}" for number in range(64))):
        clone(Path("/dev") / name, copy / name)
    (copy / "infiniband").mkdir()
    for name in NODES:
        os.mknod(copy / name, stat.S_IFCHR, NULL)
        os.chmod(copy / name, 0o666)
    syscalls.mount(str(copy), "/dev", None, syscalls.MS_BIND)
    yield
    syscalls.umount2("/dev", syscalls.MNT_DETACH)
    syscalls.umount2(str(copy), syscalls.MNT_DETACH)


def clone(device: Path, target: Path) -> None:
    """Make a node as another one is; loop devices appear as they are needed."""
    if device.exists():
        found = device.stat()
        os.mknod(target, found.st_mode, found.st_rdev)
        os.chmod(target, stat.S_IMODE(found.st_mode))
    else:
        os.mknod(target, stat.S_IFBLK | 0o660, os.makedev(7, int(device.name[len("loop") :])))


def can_open(container: Container, path: str) -> bool:
    return container.run("sh", "-c", f"true <{path} && echo yes >{path}").code == 0


@both_ways
def test_devices_are_as_on_the_host(make: Make, user_namespace: bool) -> None:
    os.chmod("/dev/gdrdrv", 0o600)
    container = make(user_namespace=user_namespace)
    opened = {name: can_open(container, f"/dev/{name}") for name in NODES}
    os.chmod("/dev/gdrdrv", 0o666)
    assert opened == {**dict.fromkeys(NODES, True), "gdrdrv": False}


@both_ways
def test_without_a_fabric_none_can_be_opened(make: Make, user_namespace: bool) -> None:
    container = make(user_namespace=user_namespace, additions=[Addition(operations=(no_fabric(),))])
    assert not any(can_open(container, f"/dev/{name}") for name in NODES)
    assert can_open(container, "/dev/null"), "the others are as they were"
    assert container.run("ls", "/dev/infiniband").stdout == ""


@both_ways
def test_what_is_hidden_stays_hidden(make: Make, user_namespace: bool) -> None:
    container = make(user_namespace=user_namespace, additions=[Addition(operations=(no_fabric(),))])
    for path in ("/dev/infiniband", "/dev/hfi1_0"):
        assert container.run("umount", path).code != 0
        assert container.run("mount", "-o", "remount,bind,dev", path).code != 0
    assert not can_open(container, "/dev/hfi1_0")
    assert "cannot" not in container.run("ls", "/dev/infiniband", user=BOB).stdout


def test_the_way_over_the_hosts_root_is_closed_too(make: Make, tmp_path: Path) -> None:
    program = shutil.copy("/bin/true", tmp_path / "program")
    commands = Commands("/usr/bin", ("sinfo",), str(program))
    container = make(
        user_namespace=False, commands=commands, additions=[Addition(operations=(no_fabric(),))]
    )
    assert can_open(container, "/.host/dev/null")
    assert not any(can_open(container, f"/.host/dev/{name}") for name in NODES)


def test_the_host_keeps_its_devices(make: Make) -> None:
    make(user_namespace=False, additions=[Addition(operations=(no_fabric(),))])
    for name in NODES:
        Path(f"/dev/{name}").write_text("still open")
