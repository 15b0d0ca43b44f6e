"""Devices of fabrics inside a container: as on the host, or not at all.

No such device is at hand: nodes with the numbers of /dev/null stand in for them, in a /dev of the
test's own.  What drives them is tested in the virtual machine (tests/vm/test_soft_roce.py).
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest
from containers import Container, Make

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from libraries_by_gcc import compile_library

from hpcwrap.container import fabric, syscalls
from hpcwrap.container.addition import Addition
from hpcwrap.container.fabric import no_fabric
from hpcwrap.container.operations import Commands
from hpcwrap.errors import UserError

pytestmark = pytest.mark.privileged

both_ways = pytest.mark.parametrize("user_namespace", [False, True], ids=["host", "userns"])

NODES = ("infiniband/uverbs0", "infiniband/rdma_cm", "hfi1_0", "cxi0", "knem", "xpmem", "gdrdrv")
NULL = os.makedev(1, 3)
LIBRARIES = "/usr/lib/x86_64-linux-gnu"


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
    listed = container.run("ls", "/dev/infiniband")
    assert (listed.code, listed.stdout) == (0, "")


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


def make_squashfs(root: Path) -> Path:
    """Make an image of a tree, beside it, in place of an earlier one."""
    path = root.with_suffix(".sqsh")
    options = ["-quiet", "-no-progress", "-all-root", "-noappend"]
    subprocess.run(["mksquashfs", root, path, *options], check=True)
    return path


class Verbs(NamedTuple):
    """A host's libibverbs with a driver, and an image whose programs have another one."""

    host: Path
    image: Path

    def make_host(self, version: str) -> Addition:
        """Plan to bring the host's library of this version in."""
        library = self.library(self.host, version, "host")
        compile_library(self.host / "libibverbs/libtest-rdmav34.so", "int driver;", soname="")
        return fabric.host_addition({fabric.VERBS: str(library)})

    def make_image(self, version: str) -> Path:
        """Make an image with a library of this version, and the driver of that."""
        self.library(self.image / LIBRARIES[1:], version, "image")
        return make_squashfs(self.image)

    def library(self, directory: Path, version: str, answer: str) -> Path:
        """A library of one function, which says whose it is."""
        path = directory / f"libibverbs.so.{version}"
        code = f'const char *verbs(void) {{ return "{answer}"; }}'
        compile_library(path, code, soname=fabric.VERBS)
        (directory / fabric.VERBS).symlink_to(path.name)
        return path


@pytest.fixture(name="verbs")
def image_with_a_program(tmp_path: Path) -> Verbs:
    """An image with the C library, and a program that says whose library it has."""
    verbs = Verbs(tmp_path / "host", tmp_path / "image")
    home = verbs.image / LIBRARIES[1:]
    home.mkdir(parents=True)
    for name in ("bin", "lib64"):
        (verbs.image / name).mkdir()
    (verbs.image / "lib").symlink_to("usr/lib")
    shutil.copy("/lib64/ld-linux-x86-64.so.2", verbs.image / "lib64")
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", home)
    stub = verbs.library(tmp_path / "stub", "1.1", "stub")
    code = "#include <stdio.h>\nconst char *verbs(void);int main(void){return puts(verbs())<0;}"
    compiler = ["gcc", "-x", "c", "-", "-o", verbs.image / "bin/program", "-x", "none", stub]
    subprocess.run(compiler, input=code.encode(), check=True)
    return verbs


@both_ways
@pytest.mark.parametrize("version", ["1.1.30.0", "1.14.44.0", "1.14.50.0"])
def test_the_hosts_library_takes_the_place_of_the_images(
    make: Make, verbs: Verbs, version: str, user_namespace: bool
) -> None:
    image, addition = verbs.make_image(version), verbs.make_host("1.14.44.0")
    container = make(image=image, additions=[addition], user_namespace=user_namespace)
    assert container.run("program").stdout == "host\n"


def test_drivers_are_where_the_hosts_library_looks(make: Make, verbs: Verbs) -> None:
    shutil.copy("/bin/busybox", verbs.image / "bin/ls")
    image, addition = verbs.make_image("1.14.44.0"), verbs.make_host("1.14.44.0")
    container = make(image=image, additions=[addition], user_namespace=True)
    listed = container.run("ls", str(verbs.host / "libibverbs"))
    assert listed.stdout == "libtest-rdmav34.so\n"


def test_what_is_the_hosts_already_is_left(make: Make, verbs: Verbs) -> None:
    """As where `mpi: host` has brought the same libraries in."""
    image, addition = verbs.make_image("1.14.44.0"), verbs.make_host("1.14.44.0")
    container = make(image=image, additions=[addition, addition], user_namespace=True)
    assert container.run("program").stdout == "host\n"


def test_an_image_with_a_newer_library_is_refused(make: Make, verbs: Verbs) -> None:
    image, addition = verbs.make_image("1.15.56.0"), verbs.make_host("1.14.44.0")
    with pytest.raises(UserError, match=r"its libibverbs.so.1 is 1\.15, the host's 1\.14"):
        make(image=image, additions=[addition], user_namespace=True)


def test_an_image_of_static_programs_is_left_alone(make: Make, verbs: Verbs) -> None:
    container = make(additions=[verbs.make_host("1.14.44.0")], user_namespace=True)
    assert container.run("id").code == 0
