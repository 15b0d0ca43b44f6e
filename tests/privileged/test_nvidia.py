"""`hpcwrap cdi generate nvidia`, with nvidia-ml-py, ldconfig and a driver that stands in.

No GPU is at hand.  libnvidia-ml.so.1 is tests/unit/nvml_stand_in.c, with NVML's own interface; the
other libraries are made by gcc, and the device nodes have the numbers of /dev/zero.  They are seen
in a mount namespace of the test's own, whose ld.so.cache knows them.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
import yaml
from device_nodes import make_node

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from libraries_by_gcc import compile_library

from hpcwrap import machine
from hpcwrap.config import Settings
from hpcwrap.container import cdifile, syscalls
from hpcwrap.container.injection import DeviceNodes, Hidden
from hpcwrap.environment import Machine
from hpcwrap.gpus import Gpus

pytestmark = pytest.mark.privileged

STAND_IN = Path(__file__).parents[1] / "unit" / "nvml_stand_in.c"
REPOSITORY = Path(__file__).parents[2]
FIRST = "GPU-11111111-aaaa-bbbb-cccc-000000000000"
PARTS = ("MIG-33333333-aaaa-bbbb-cccc-000000000000", "MIG-44444444-aaaa-bbbb-cccc-000000000000")
VERSION = "999.88.77"
LIBRARIES = {
    "libcuda": "libcuda.so.1",
    "libnvidia-ptxjitcompiler": "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-glcore": f"libnvidia-glcore.so.{VERSION}",
    "vdpau/libvdpau_nvidia": "libvdpau_nvidia.so.1",
}
MINORS = """\
config 1
monitor 2
gpu0/gi1/access 12
gpu0/gi1/ci0/access 13
gpu0/gi5/access 48
gpu0/gi5/ci0/access 49
"""


class Node:
    """A node with a driver."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "driver"
        self.nvml = self.home / f"libnvidia-ml.so.{VERSION}"

    def install(self) -> None:
        """Compile the libraries, and have ldconfig find them as after an installation."""
        compile_library(self.nvml, STAND_IN.read_text(), soname="libnvidia-ml.so.1")
        for name, soname in LIBRARIES.items():
            compile_library(self.home / f"{name}.so.{VERSION}", "int here;", soname=soname)
        compile_library(self.home / "libother.so.1.2", "int here;", soname="libother.so.1")
        (self.home / f"libnvidia-text.so.{VERSION}").write_text("no library")
        conf = self.home / "conf"
        conf.write_text(f"{self.home}\ninclude /etc/ld.so.conf\n")
        cache = self.home / "cache"
        subprocess.run(["/sbin/ldconfig", "-f", conf, "-C", cache], check=True)
        syscalls.mount(str(cache), "/etc/ld.so.cache", None, syscalls.MS_BIND)

    def hpcwrap(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command as root of this node does."""
        argv = [sys.executable, "-m", "hpcwrap", *words]
        return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture(scope="module")
def node(own_mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A driver, and a /dev with the nodes of two GPUs."""
    node = Node(tmp_path_factory.mktemp("node"))
    devices = tmp_path_factory.mktemp("dev")
    syscalls.mount("tmpfs", str(devices), "tmpfs", syscalls.MS_NOSUID, "mode=755")
    caps = [f"nvidia-caps/nvidia-cap{number}" for number in (12, 13, 48, 49)]
    names = ("zero", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", *caps)
    for name in (*names, "dri/card7", "dri/renderD130"):
        make_node(devices / name, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    make_node(devices / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    by_path = devices / "dri" / "by-path"
    by_path.mkdir()
    (by_path / "pci-0000:3b:00.0-card").symlink_to("../card7")
    (by_path / "pci-0000:3b:00.0-render").symlink_to("../renderD130")
    syscalls.mount(str(devices), "/dev", None, syscalls.MS_BIND)
    node.install()
    yield node
    for path in ("/etc/ld.so.cache", "/dev", str(devices)):
        syscalls.umount2(path, syscalls.MNT_DETACH)


@pytest.fixture(scope="module")
def spec(node: Node) -> Dict[str, Any]:
    """What is generated, with /proc's MIG capabilities of a machine that has them."""
    minors = node.home / "mig-minors"
    minors.write_text(MINORS)
    script = "import json; from hpcwrap.container import nvidia; "
    script += f"nvidia.MIG_MINORS = {str(minors)!r}; print(json.dumps(nvidia.make_spec()))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: Dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def nodes(spec: Dict[str, Any]) -> Dict[str, List[str]]:
    return {
        device["name"]: [node["path"] for node in device["containerEdits"]["deviceNodes"]]
        for device in spec["devices"]
    }


def test_gpus_and_their_parts_have_their_names_and_nodes(spec: Dict[str, Any]) -> None:
    """NVML's second GPU has minor number 0: names count as NVML does, nodes as the driver."""
    first = ["/dev/nvidia1", "/dev/dri/card7", "/dev/dri/renderD130"]
    lower = ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"]
    upper = ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap48", "/dev/nvidia-caps/nvidia-cap49"]
    assert nodes(spec) == {
        "0": first,
        FIRST: first,
        "1:0": lower,
        PARTS[0]: lower,
        "1:2": upper,
        PARTS[1]: upper,
        "all": [*first, *lower, *upper[1:]],
    }
    common = spec["containerEdits"]
    assert common["deviceNodes"] == [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-uvm"}]
    assert common["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    assert "hooks" not in common


def test_libraries_of_the_drivers_version_are_mounted_on_their_names(
    spec: Dict[str, Any], node: Node
) -> None:
    home, mounts = str(node.home), spec["containerEdits"]["mounts"]
    targets = {mount["containerPath"][len(home) + 1 :] for mount in mounts}
    files = {f"{name}.so.{VERSION}" for name in (*LIBRARIES, "libnvidia-ml")}
    others = {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1"}
    assert targets == files | others | {"vdpau/libvdpau_nvidia.so.1"}
    assert {mount["hostPath"] for mount in mounts} == {f"{home}/{name}" for name in files}
    assert all("ro" in mount["options"] for mount in mounts)


def test_what_is_generated_is_what_we_read(spec: Dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "nvidia.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    assert cdifile.read_spec(str(file)).kind == "nvidia.com/gpu"
    settings = Settings(cdi_directories=(str(tmp_path),))
    added = machine.device_addition(
        Machine(gpus="scheduler"), Gpus(PARTS[:1], ("nvidia.com",)), settings
    )
    (given,) = [each for each in added.operations if isinstance(each, DeviceNodes)]
    (hidden,) = [each for each in added.operations if isinstance(each, Hidden)]
    assert "/dev/nvidia-caps/nvidia-cap12" in [node.path for node in given.nodes]
    assert "/dev/nvidia-caps/nvidia-cap48" in hidden.host
    assert "/dev/nvidia0" not in hidden.host


def test_parts_without_capabilities_are_an_error(node: Node) -> None:
    done = node.hpcwrap("cdi", "generate", "nvidia")
    assert done.returncode == 3
    assert "cannot find gpu0/gi1/access in /proc/driver/nvidia-caps/mig-minors" in done.stderr


@contextmanager
def other_nvml(node: Node, option: str) -> Iterator[None]:
    """The stand-in compiled in another way, in the place of the first."""
    other = compile_library(
        node.home / "other" / "libnvidia-ml.so.1",
        STAND_IN.read_text(),
        soname="libnvidia-ml.so.1",
        options=[option],
    )
    syscalls.mount(str(other), str(node.nvml), None, syscalls.MS_BIND)
    try:
        yield
    finally:
        syscalls.umount2(str(node.nvml), syscalls.MNT_DETACH)


def test_a_driver_that_is_not_loaded_is_told_of(node: Node) -> None:
    with other_nvml(node, "-DBROKEN"):
        done = node.hpcwrap("cdi", "generate", "nvidia")
    assert done.returncode == 3
    assert "cannot ask the NVIDIA driver: Driver Not Loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_list_show_and_check(node: Node, tmp_path: Path) -> None:
    specs = tmp_path / "cdi"
    settings = tmp_path / "hpcwrap.yaml"
    settings.write_text(f"cdi_directories: [{specs}]\n")
    with other_nvml(node, "-DWITHOUT_MIG"):
        wrote = node.hpcwrap("cdi", "generate", "nvidia", "--output", str(specs / "nvidia.yaml"))
        assert (wrote.returncode, wrote.stderr) == (0, "")
        assert os.listdir(specs) == ["nvidia.yaml"]
        listed = node.hpcwrap("--config", str(settings), "cdi", "list")
        assert [line.split()[:2] for line in listed.stdout.splitlines()[1:4]] == [
            ["nvidia.com/gpu=0", "/dev/nvidia1"],
            ["nvidia.com/gpu=1", "/dev/nvidia0"],
            [f"nvidia.com/gpu={FIRST}", "/dev/nvidia1"],
        ]
        shown = node.hpcwrap("--config", str(settings), "cdi", "show", "nvidia.com/gpu=1").stdout
        assert "/dev/nvidia0" in shown
        assert "/dev/nvidia1" not in shown
        assert f"{node.home}/libcuda.so.{VERSION}" in shown
        checked = node.hpcwrap("--config", str(settings), "cdi", "check")
        assert (checked.returncode, checked.stderr) == (0, "")
        assert "5 devices in 1 spec of" in checked.stdout


def test_check_tells_all_that_is_wrong(node: Node, tmp_path: Path) -> None:
    specs = tmp_path / "cdi"
    specs.mkdir()
    settings = tmp_path / "hpcwrap.yaml"
    settings.write_text(f"cdi_directories: [{specs}]\n")
    device = "[{name: a, containerEdits: {deviceNodes: [{path: /dev/gone}]}}]"
    for name in ("a.yaml", "b.yaml"):
        text = f"cdiVersion: 0.7.0\nkind: v.example/gpu\ndevices: {device}\n"
        (specs / name).write_text(text + "containerEdits: {additionalGids: [44]}\n")
    (specs / "c.yaml").write_text("cdiVersion: 0.7.0\nkind: nonsense\n")
    checked = node.hpcwrap("--config", str(settings), "cdi", "check")
    assert checked.returncode == 3
    assert "c.yaml:2: kind must be vendor/class" in checked.stderr
    assert "both describe it" in checked.stderr
    assert "there is no /dev/gone" in checked.stderr
    assert "note: /dev/nvidia1 is in no spec" in checked.stdout
    assert "additionalGids are not added" in checked.stdout
    listed = node.hpcwrap("--config", str(settings), "cdi", "list", "--json")
    assert listed.returncode == 3
