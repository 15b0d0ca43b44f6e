"""Devices of CDI specs inside containers, and what no container can open.

No GPU is at hand: nodes with the numbers of /dev/null and /dev/zero stand in for GPUs, in a /dev of
the test's own, and libraries made by gcc for a driver's.  All else is real.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence

import pytest
from containers import ALICE, ENTER, Container, Make, make_squashfs
from device_nodes import make_node

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from libraries_by_gcc import compile_library

from hpcwrap import machine
from hpcwrap.config import Settings
from hpcwrap.container import syscalls
from hpcwrap.container.addition import Addition
from hpcwrap.container.operations import Commands
from hpcwrap.environment import Machine, Mount
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.gpus import Gpus

pytestmark = pytest.mark.privileged

both_ways = pytest.mark.parametrize("user_namespace", [False, True], ids=["host", "userns"])

NOTHING = Machine()
ZERO = os.makedev(1, 5)
GPUS = ("nvidia0", "nvidia1", "nvidia2", "nvidia3")
CAPS = ("nvidia-caps/nvidia-cap21", "nvidia-caps/nvidia-cap22", "nvidia-caps/nvidia-cap30")
COMMON = ("nvidiactl", "nvidia-uvm")

PROGRAM = """
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **names)
{
    for (int i = 1; i < count; i++) {
        void *library = dlopen(names[i], RTLD_NOW);
        const char *(*who)(void) = library ? (const char *(*)(void))dlsym(library, "who") : 0;
        puts(who ? who() : dlerror());
    }
    return 0;
}
"""


@pytest.fixture(scope="module", autouse=True)
def own_devices(own_mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A /dev with what containers need of this machine's, and stand-ins for GPUs."""
    copy = tmp_path_factory.mktemp("dev")
    syscalls.mount("tmpfs", str(copy), "tmpfs", syscalls.MS_NOSUID, "mode=755")
    for name in ("null", "zero", "loop-control"):
        found = os.stat(f"/dev/{name}")
        make_node(copy / name, found.st_mode, found.st_rdev)
    for number in range(64):
        make_node(copy / f"loop{number}", stat.S_IFBLK | 0o660, os.makedev(7, number))
    for name in (*GPUS, *CAPS, *COMMON):
        make_node(copy / name, stat.S_IFCHR | 0o666, ZERO)
    syscalls.mount(str(copy), "/dev", None, syscalls.MS_BIND)
    yield
    syscalls.umount2("/dev", syscalls.MNT_DETACH)
    syscalls.umount2(str(copy), syscalls.MNT_DETACH)


class Specs:
    """A directory of specs of NVIDIA's kind, and the settings that name it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.settings = Settings(mount_home=False, cdi_directories=(str(directory),))

    def write(self, common: Optional[Dict[str, Any]] = None, kind: str = "nvidia.com/gpu") -> None:
        """Four GPUs by number and UUID, two MIG devices on the last, and all of them."""
        nodes = {str(number): [name] for number, name in enumerate(GPUS)}
        nodes.update({f"GPU-{name}-uuid": [name] for name in GPUS})
        nodes["3:0"] = nodes["MIG-0-uuid"] = ["nvidia3", *CAPS[:2]]
        nodes["3:1"] = ["nvidia3", CAPS[2]]
        nodes["all"] = [*GPUS, *CAPS]
        devices = [
            {"name": name, "containerEdits": edits_of(*each)} for name, each in nodes.items()
        ]
        edits = {**edits_of(*COMMON), "env": ["NVIDIA_VISIBLE_DEVICES=void"], **(common or {})}
        self.write_raw(kind, devices, edits)

    def write_raw(self, kind: str, devices: Sequence[Any], edits: Dict[str, Any]) -> None:
        spec = {"cdiVersion": "0.7.0", "kind": kind, "devices": devices, "containerEdits": edits}
        name = kind.replace("/", "-")
        (self.directory / f"{name}.json").write_text(json.dumps(spec, indent=1))

    def add(self, *names: str, wanted: Machine = NOTHING, renumber: bool = False) -> Addition:
        """What a job gets that was given these GPUs."""
        given = Gpus(names, ("nvidia.com",), renumber) if names else None
        return machine.device_addition(
            wanted._replace(gpus=wanted.gpus or "scheduler"), given, self.settings
        )


def edits_of(*names: str) -> Dict[str, Any]:
    return {"deviceNodes": [{"path": f"/dev/{name}", "type": "c"} for name in names]}


@pytest.fixture
def specs(tmp_path: Path) -> Specs:
    made = Specs(tmp_path / "cdi")
    made.write()
    return made


def openable(container: Container) -> list[str]:
    """The stand-ins that can be opened for reading and writing inside."""
    names = [*GPUS, *CAPS, *COMMON]
    test = 'for name; do (: <>"/dev/$name") 2>/dev/null && echo "$name"; done'
    return container.run("sh", "-c", test, "sh", *names).stdout.split()


@both_ways
@pytest.mark.parametrize(
    ("given", "there"),
    [
        (["0"], ["nvidia0"]),
        (["1", "2"], ["nvidia1", "nvidia2"]),
        (["GPU-nvidia2-uuid"], ["nvidia2"]),
        (["GPU-nvidia2"], ["nvidia2"]),
        (["MIG-0-uuid"], ["nvidia3", *CAPS[:2]]),
    ],
)
def test_a_job_opens_its_gpus_and_no_other(
    make: Make, specs: Specs, user_namespace: bool, given: Sequence[str], there: Sequence[str]
) -> None:
    container = make(user_namespace=user_namespace, additions=[specs.add(*given)])
    assert openable(container) == [*there, *COMMON]
    assert container.run("sh", "-c", f"echo x >/dev/{there[0]}").code == 0


def test_a_job_without_gpus_opens_none(make: Make, specs: Specs) -> None:
    container = make(user_namespace=False, additions=[specs.add()])
    assert openable(container) == []
    refused = container.run("cat", "/dev/nvidia1")
    assert "Permission denied" in refused.stderr


def test_all_and_none(make: Make, specs: Specs) -> None:
    everything = specs.add("0", wanted=Machine(gpus="all"))
    nothing = specs.add("0", wanted=Machine(gpus="none"))
    assert openable(make(user_namespace=False, additions=[everything])) == [*GPUS, *CAPS, *COMMON]
    assert openable(make(user_namespace=False, additions=[nothing])) == []


def test_a_list_and_a_device_by_its_name(make: Make, specs: Specs) -> None:
    asked = Machine(gpus="0,GPU-nvidia1", devices=("nvidia.com/gpu=3:1",))
    container = make(user_namespace=True, additions=[specs.add(wanted=asked)])
    assert openable(container) == ["nvidia0", "nvidia1", "nvidia3", CAPS[2], *COMMON]


@both_ways
def test_what_is_hidden_stays_hidden(make: Make, specs: Specs, user_namespace: bool) -> None:
    container = make(user_namespace=user_namespace, additions=[specs.add("0")])
    assert container.run("umount", "/dev/nvidia1").code != 0
    assert container.run("busybox", "mv", "/dev/nvidia1", "/dev/x").code != 0
    # A user may be root of a user namespace of its own, and mount there.
    become = ("busybox", "unshare", "-r", "-m", "sh", "-c")
    assert container.run(*become, "mount -t tmpfs x /tmp && echo well").stdout == "well\n"
    assert container.run(*become, "(: </dev/nvidia0) && echo OPENED").stdout == "OPENED\n"
    for way in (
        "umount /dev/nvidia1; : </dev/nvidia1",
        "umount -l /dev; : </dev/nvidia1",
        "mount --bind /dev /tmp; umount /tmp/nvidia1; : </tmp/nvidia1",
        "mount --rbind /dev /tmp; umount /tmp/nvidia1; : </tmp/nvidia1",
        "mount -o remount,dev,bind /dev/nvidia1; : </dev/nvidia1",
    ):
        assert container.run(*become, f"({way}) && echo OPENED").stdout == "", way


def test_a_gpu_that_is_not_there_yet_is_told(specs: Specs) -> None:
    """It cannot be covered, and the job might open it later."""
    assert specs.add("0").warnings == ()
    os.rename("/dev/nvidia2", "/dev/gone")
    try:
        (warning,) = specs.add("0").warnings
    finally:
        os.rename("/dev/gone", "/dev/nvidia2")
    assert warning.startswith("cannot keep the job from /dev/nvidia2: not there yet (load the")


def test_not_even_root_opens_what_is_hidden(make: Make, specs: Specs) -> None:
    root = ALICE._replace(uid=0, gid=0)
    container = make(user_namespace=False, additions=[specs.add("0")])
    assert "Permission denied" in container.run("cat", "/dev/nvidia1", user=root).stderr


def test_the_hosts_root_inside_hides_them_too(make: Make, specs: Specs) -> None:
    commands = Commands("/usr/bin", ("srun",), str(ENTER))
    container = make(user_namespace=False, additions=[specs.add("0")], commands=commands)
    assert container.run("sh", "-c", ": </.host/dev/nvidia0").code == 0
    assert container.run("sh", "-c", ": </.host/dev/nvidia1").code != 0


def test_the_hosts_root_inside_has_devices_in_its_dev_only(
    make: Make, specs: Specs, tmp_path: Path
) -> None:
    """A host has more nodes of the same numbers: a chroot's, those of an image on its disk."""
    other = tmp_path / "chroot/dev"
    other.mkdir(parents=True)
    syscalls.mount("tmpfs", str(other), "tmpfs", syscalls.MS_NOSUID, "mode=755")
    try:
        make_node(other / "nvidia1", stat.S_IFCHR | 0o666, ZERO)
        commands = Commands("/usr/bin", ("srun",), str(ENTER))
        container = make(user_namespace=False, additions=[specs.add("0")], commands=commands)
    finally:
        syscalls.umount2(str(other), syscalls.MNT_DETACH)
    assert container.run("ls", f"/.host{other}").stdout == "nvidia1\n"
    assert container.run("sh", "-c", f": <>/.host{other}/nvidia1").code != 0
    assert container.run("sh", "-c", ": <>/.host/dev/null").code == 0
    assert container.run("umount", "/.host/dev").code != 0


def test_the_hosts_own_devices_stay_as_they_are(make: Make, specs: Specs) -> None:
    make(user_namespace=False, additions=[specs.add("0")])
    for name in GPUS:
        os.close(os.open(f"/dev/{name}", os.O_RDWR))


def test_a_node_of_another_name_inside(make: Make, specs: Specs) -> None:
    node = {"path": "/dev/nvidia0", "hostPath": "/dev/nvidia2"}
    device = {"name": "two", "containerEdits": {"deviceNodes": [node]}}
    specs.write_raw("vendor.example/gpu", [device], {})
    asked = Machine(gpus="none", devices=("vendor.example/gpu=two",))
    container = make(user_namespace=False, additions=[specs.add(wanted=asked)])
    assert openable(container) == ["nvidia0", "nvidia2"]


def test_a_device_outside_of_dev(make: Make, specs: Specs) -> None:
    node = {"path": "/opt/accelerator/x0", "hostPath": "/dev/zero", "major": 1, "minor": 5}
    specs.write_raw("v.example/x", [{"name": "0", "containerEdits": {"deviceNodes": [node]}}], {})
    added = specs.add(wanted=Machine(devices=("v.example/x=0",)))
    container = make(user_namespace=True, additions=[added])
    assert container.run("sh", "-c", ": <>/opt/accelerator/x0").code == 0


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        ({"path": "/dev/gone"}, r"cannot find the device /dev/gone of a CDI spec"),
        ({"path": "/dev/zero", "type": "b"}, "is no device of that type"),
        ({"path": "/dev/zero", "major": 1, "minor": 3}, r"its numbers are 1:5, .* has 1:3"),
        ({"path": "/etc/passwd"}, "is no device of that type"),
    ],
)
def test_a_spec_that_does_not_fit_the_node(
    make: Make, specs: Specs, node: Dict[str, Any], complaint: str
) -> None:
    specs.write_raw("v.example/x", [{"name": "0", "containerEdits": {"deviceNodes": [node]}}], {})
    with pytest.raises(SiteError, match=complaint):
        make(
            user_namespace=False,
            additions=[specs.add(wanted=Machine(devices=("v.example/x=0",)))],
        )


# The driver's files


class Driver(Specs):
    """Specs with libraries, a program and a link; an image with glibc and a program for them."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path / "specs")
        self.host = tmp_path / "host"
        self.image = tmp_path / "image"
        self.make_image()

    def make_image(self) -> None:
        home = self.image / "usr/lib/x86_64-linux-gnu"
        home.mkdir(parents=True)
        (self.image / "lib").symlink_to("usr/lib")
        for name in ("lib64", "bin"):
            (self.image / name).mkdir()
        shutil.copy("/lib64/ld-linux-x86-64.so.2", self.image / "lib64")
        shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", home)
        shutil.copy("/bin/busybox", self.image / "bin")
        for applet in ("sh", "cat", "readlink", "env"):
            (self.image / "bin" / applet).symlink_to("busybox")
        compiler = ["gcc", "-x", "c", "-", "-o", self.image / "bin" / "program"]
        subprocess.run(compiler, input=PROGRAM.encode(), check=True)

    def library(self, name: str, soname: str, answer: str, **linked: Any) -> Dict[str, Any]:
        """A library of the driver, and its mount."""
        source = f'const char *who(void) {{ return "{answer}"; }}'
        path = compile_library(self.host / name, source, soname=soname, **linked)
        target = f"/usr/lib64/driver/{name}"
        options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
        return {"hostPath": str(path), "containerPath": target, "options": options}

    def start(self, make: Make, *argv: str, env: Optional[Dict[str, str]] = None) -> str:
        """What a command says in a container of a job that has a GPU."""
        # mksquashfs adds to what is there.
        self.image.with_suffix(".sqsh").unlink(missing_ok=True)
        image = make_squashfs(self.image)
        container = make(image=image, additions=[self.add("0")], user_namespace=True)
        command = ["/bin/env", *(f"{name}={value}" for name, value in (env or {}).items()), *argv]
        ran = container.run(*command)
        return ran.stdout.strip() or ran.stderr


def hook(*words: str) -> Dict[str, Any]:
    program = "/usr/bin/nvidia-cdi-hook"
    return {"hookName": "createContainer", "path": program, "args": ["nvidia-cdi-hook", *words]}


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_programs_of_the_image_load_the_drivers_libraries(make: Make, driver: Driver) -> None:
    """By their sonames, though the spec puts them where the image's linker does not look."""
    mounts = [
        driver.library("libcuda.so.999.88.77", "libcuda.so.1", "cuda"),
        driver.library("libnvidia-ml.so.999.88.77", "libnvidia-ml.so.1", "ml"),
    ]
    link = "libcuda.so.1::/usr/lib64/driver/libcuda.so"
    hooks = [hook("create-symlinks", "--link", link), hook("update-ldcache", "--folder", "/x")]
    driver.write({"mounts": mounts, "hooks": hooks})
    names = ["libcuda.so.1", "libnvidia-ml.so.1", "/usr/lib64/driver/libcuda.so.999.88.77"]
    bare = {"LD_LIBRARY_PATH": ""}
    assert driver.start(make, "/bin/program", *names, env=bare).split() == ["cuda", "ml", "cuda"]
    assert driver.start(make, "/bin/readlink", "/usr/lib64/driver/libcuda.so") == "libcuda.so.1"


def test_programs_that_look_for_the_file_find_it(make: Make, driver: Driver) -> None:
    driver.write({"mounts": [driver.library("libcuda.so.999.88.77", "libcuda.so.1", "cuda")]})
    variables = dict(line.split("=", 1) for line in driver.start(make, "/bin/env").splitlines())
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "void"
    directory = variables["LD_LIBRARY_PATH"].split(":")[-1]
    for name in ("libcuda.so.1", "libcuda.so"):
        assert driver.start(make, "/bin/program", f"{directory}/{name}") == "cuda"


@pytest.mark.parametrize(("compat", "loaded"), [("1000.1.2", "compat"), ("999.99.9", "host")])
def test_compatibility_libraries_count_when_they_are_newer(
    make: Make, driver: Driver, compat: str, loaded: str
) -> None:
    driver.write({"mounts": [driver.library("libcuda.so.999.88.77", "libcuda.so.1", "host")]})
    source = 'const char *who(void) { return "compat"; }'
    home = driver.image / "usr/local/cuda-12.9/compat"
    made = compile_library(home / f"libcuda.so.{compat}", source, soname="libcuda.so.1")
    (made.parent / "libcuda.so.1").symlink_to(made.name)
    (driver.image / "usr/local/cuda").symlink_to("cuda-12.9")
    assert driver.start(make, "/bin/program", "libcuda.so.1") == loaded


def test_a_stale_driver_in_the_image_gives_way(make: Make, driver: Driver) -> None:
    driver.write({"mounts": [driver.library("libnvidia-ml.so.999.1", "libnvidia-ml.so.1", "host")]})
    source = 'const char *who(void) { return "stale"; }'
    stale = driver.image / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    compile_library(stale, source, soname="libnvidia-ml.so.1")
    assert driver.start(make, "/bin/program", "libnvidia-ml.so.1") == "host"


def test_a_driver_for_a_newer_glibc_is_refused(make: Make, driver: Driver) -> None:
    future = compile_libc(driver.host)
    options = ["-nostdlib", "-Wl,-u,future"]
    mount = driver.library("libcuda.so.999.1", "libcuda.so.1", "x", needs=[future], options=options)
    driver.write({"mounts": [mount]})
    with pytest.raises(UserError) as raised:
        driver.start(make, "/bin/true")
    assert "libcuda.so.999.1 needs glibc 2.99, the image has 2." in raised.value.sentence()
    assert "gpus: none" in raised.value.sentence()


def compile_libc(directory: Path) -> Path:
    """A C library with a version of the future."""
    directory.mkdir(exist_ok=True)
    versions = directory / "versions"
    versions.write_text("GLIBC_2.99 { global: future; };\n")
    options = ["-nostdlib", f"-Wl,--version-script={versions}"]
    source = "void future(void) {}"
    return compile_library(directory / "stub.so", source, soname="libc.so.6", options=options)


def test_a_hook_that_nobody_knows_stops_the_job(driver: Driver) -> None:
    driver.write({"hooks": [hook("create-symlinks", "--link", "a::/b"), hook("mystery")]})
    with pytest.raises(SiteError, match=r"json:\d+: cannot do what the hook .* mystery is for"):
        driver.add("0")
    program = {"hookName": "poststop", "path": "/opt/vendor/bin/setup"}
    driver.write({"hooks": [program]})
    with pytest.raises(SiteError, match=r"cannot do what the hook /opt/vendor/bin/setup"):
        driver.add("0")


def test_a_missing_file_of_a_spec_is_told_with_its_line(make: Make, specs: Specs) -> None:
    specs.write({"mounts": [{"hostPath": "/gone/x", "containerPath": "/x"}]})
    with pytest.raises(SiteError, match=r"cannot open /gone/x"):
        make(user_namespace=False, additions=[specs.add("0")])


@pytest.mark.parametrize(
    ("path", "error", "complaint"),
    [
        (".hpcwrap", UserError, r"cannot use the image: its /\.hpcwrap"),
        ("usr/lib64/driver", SiteError, "in a mount of the host"),
    ],
)
def test_links_of_the_image_lead_nothing_of_roots_to_the_host(
    make: Make,
    driver: Driver,
    tmp_path: Path,
    path: str,
    error: type[HpcwrapError],
    complaint: str,
) -> None:
    """What root makes inside stays inside, wherever the image's links point to."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (driver.image / path).parent.mkdir(exist_ok=True, parents=True)
    (driver.image / path).symlink_to("/srv")
    link = "libcuda.so.1::/usr/lib64/driver/new/libcuda.so"
    library = driver.library("libcuda.so.999.1", "libcuda.so.1", "cuda")
    driver.write({"mounts": [library], "hooks": [hook("create-symlinks", "--link", link)]})
    image = make_squashfs(driver.image)
    srv = Mount(str(mounted), "/srv", "bind", (), "environments.d/test.yaml:3")
    with pytest.raises(error, match=complaint):
        make([srv], image=image, additions=[driver.add("0")], user_namespace=False)
    assert list(mounted.rglob("*")) == []
