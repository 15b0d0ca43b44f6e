"""A CDI spec for NVIDIA's GPUs: the driver is asked by NVML, and its files are looked for.

For sites without nvidia-ctk, whose specs are as good.  Ours needs no hooks: a library is mounted on
both of its names, and nothing has to be run to make the second one.
"""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from hpcwrap import run
from hpcwrap.container import elf
from hpcwrap.container.libraries import read_ld_cache
from hpcwrap.errors import SiteError
from hpcwrap.textfile import read_text

KIND = "nvidia.com/gpu"
VERSION = "0.5.0"
"""The first in which names of devices may begin with a digit."""

PROGRAMS = (
    *("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control"),
    *("nvidia-cuda-mps-server", "nvidia-imex", "nvidia-imex-ctl"),
)
COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
NEEDED_NODES = COMMON_NODES[:2]
SOCKETS = ("/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket")
"""What CUDA's MPS needs is in /tmp, which containers have."""

MIG_MINORS = "/proc/driver/nvidia-caps/mig-minors"

READ_ONLY = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
SOCKET = ["nosuid", "nodev", "noexec", "rbind", "rprivate"]


class Mig(NamedTuple):
    """A part of a GPU: its number on it, UUID, GPU instance and compute instance."""

    number: int
    uuid: str
    instance: int
    compute: int


class Gpu(NamedTuple):
    """A GPU as NVML counts it; `minor` names its device node, `bus` its place on the PCI bus."""

    number: int
    uuid: str
    minor: int
    bus: str
    name: str
    migs: Tuple[Mig, ...] = ()


class Driver(NamedTuple):
    """The driver's version, as its files carry it in their names, and its GPUs."""

    version: str
    gpus: Tuple[Gpu, ...]


class Files(NamedTuple):
    """What a driver has on this host: paths; of libraries with their sonames."""

    libraries: Tuple[Tuple[str, str], ...]
    programs: Tuple[str, ...]
    firmware: Tuple[str, ...]
    sockets: Tuple[str, ...]
    nodes: Tuple[str, ...]
    mig_minors: Dict[str, int]
    drm: Dict[str, Tuple[str, ...]]


def make_spec() -> Dict[str, Any]:
    """The spec of this node.  Raises SiteError where there is no driver, or one without GPUs."""
    driver = ask_driver()
    if not driver.gpus:
        raise SiteError("the NVIDIA driver of this node has no GPU", "see `nvidia-smi -L`")
    return describe(driver, find_files(driver))


def describe(driver: Driver, files: Files) -> Dict[str, Any]:
    """A spec of what was found, as CDI has it."""
    devices: Dict[str, List[str]] = {}
    for gpu in driver.gpus:
        for name, nodes in named_nodes(gpu, files).items():
            devices[name] = nodes
    devices["all"] = list(dict.fromkeys(node for nodes in devices.values() for node in nodes))
    return {
        "cdiVersion": VERSION,
        "kind": KIND,
        "devices": [
            {"name": name, "containerEdits": {"deviceNodes": [{"path": node} for node in nodes]}}
            for name, nodes in devices.items()
        ],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": node} for node in files.nodes],
            "mounts": list(mounts_of(files)),
        },
    }


def named_nodes(gpu: Gpu, files: Files) -> Dict[str, List[str]]:
    """The devices of a GPU by number and by UUID: itself, or its parts where it has any."""
    own = [f"/dev/nvidia{gpu.minor}", *files.drm.get(gpu.bus, ())]
    if not gpu.migs:
        return dict.fromkeys((str(gpu.number), gpu.uuid), own)
    found = {}
    for mig in gpu.migs:
        nodes = [*own, *capabilities(gpu, mig, files)]
        found.update(dict.fromkeys((f"{gpu.number}:{mig.number}", mig.uuid), nodes))
    return found


def capabilities(gpu: Gpu, mig: Mig, files: Files) -> List[str]:
    """The nodes that open the two instances of a part (MIG user guide, Device Nodes)."""
    instance = f"gpu{gpu.minor}/gi{mig.instance}"
    names = (f"{instance}/access", f"{instance}/ci{mig.compute}/access")
    missing = [name for name in names if name not in files.mig_minors]
    if missing:
        raise SiteError(f"cannot find {missing[0]} in {MIG_MINORS}")
    return [f"/dev/nvidia-caps/nvidia-cap{files.mig_minors[name]}" for name in names]


def mounts_of(files: Files) -> Iterable[Dict[str, Any]]:
    """All mounts: each library by its file's name and by the name that programs ask for."""
    for path, soname in files.libraries:
        beside = [os.path.join(os.path.dirname(path), name) for name in other_names(path, soname)]
        for target in dict.fromkeys([path, *beside]):
            yield mount(path, target, READ_ONLY)
    for path in (*files.programs, *files.firmware):
        yield mount(path, path, READ_ONLY)
    for path in files.sockets:
        yield mount(path, path, SOCKET)


def other_names(path: str, soname: str) -> List[str]:
    """Names beside the file's own; programs that are linked by their makers ask for libcuda.so."""
    bare = ["libcuda.so"] if os.path.basename(path).startswith("libcuda.so.") else []
    return [soname, *bare] if soname else bare


def mount(path: str, target: str, options: List[str]) -> Dict[str, Any]:
    """A bind mount as CDI has it; the options are a list of its own, for YAML without aliases."""
    return {"hostPath": path, "containerPath": target, "options": list(options)}


def ask_driver() -> Driver:
    """Ask NVML.  Raises SiteError."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SiteError(
            f"cannot ask the NVIDIA driver: {error}",
            "is it installed and loaded? `nvidia-smi` says more",
        ) from error
    try:
        count = pynvml.nvmlDeviceGetCount()
        gpus = tuple(_ask_gpu(pynvml, index) for index in range(count))
        return Driver(pynvml.nvmlSystemGetDriverVersion(), gpus)
    except pynvml.NVMLError as error:
        raise SiteError(f"cannot ask the NVIDIA driver: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _ask_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index,
        nvml.nvmlDeviceGetUUID(handle),
        nvml.nvmlDeviceGetMinorNumber(handle),
        bus_id(nvml.nvmlDeviceGetPciInfo(handle).busId),
        nvml.nvmlDeviceGetName(handle),
        tuple(_ask_migs(nvml, handle)),
    )


def _ask_migs(nvml: Any, handle: Any) -> Iterable[Mig]:
    """The parts of a GPU; numbers between them may be free."""
    try:
        enabled, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return
    if enabled != nvml.NVML_DEVICE_MIG_ENABLE:
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:
            continue
        yield Mig(
            number,
            nvml.nvmlDeviceGetUUID(part),
            nvml.nvmlDeviceGetGpuInstanceId(part),
            nvml.nvmlDeviceGetComputeInstanceId(part),
        )


def bus_id(text: Any) -> str:
    """A PCI address as sysfs writes it; NVML's has a domain of eight digits.

    >>> bus_id("00000000:3B:00.0")
    '0000:3b:00.0'
    """
    words = text.decode() if isinstance(text, bytes) else str(text)
    return words.lower()[-len("0000:00:00.0") :]


def find_files(driver: Driver) -> Files:
    """Look for what belongs to a driver on this host.  Raises SiteError."""
    missing = [node for node in NEEDED_NODES if not os.path.exists(node)]
    if missing:
        raise SiteError(
            f"cannot find {missing[0]}: its kernel module is not loaded yet",
            "`nvidia-modprobe -u -c 0` loads it",
        )
    programs = (run.find_program(name) for name in PROGRAMS)
    return Files(
        tuple(find_libraries(driver.version)),
        tuple(program for program in programs if program),
        tuple(sorted(glob.glob(f"/lib/firmware/nvidia/{driver.version}/gsp*.bin"))),
        tuple(path for path in SOCKETS if os.path.exists(path)),
        tuple(node for node in COMMON_NODES if os.path.exists(node)),
        read_mig_minors(read_text(MIG_MINORS)),
        {gpu.bus: drm_nodes(gpu.bus) for gpu in driver.gpus},
    )


def find_libraries(version: str) -> List[Tuple[str, str]]:
    """The driver's libraries: those of its version, which their files have in their names.

    They are where ldconfig has found one of them, and below in vdpau.  Raises SiteError.
    """
    suffix = f".so.{version}"
    cached = (os.path.realpath(path) for paths in read_ld_cache().values() for path in paths)
    directories = dict.fromkeys(os.path.dirname(path) for path in cached if path.endswith(suffix))
    if not directories:
        raise SiteError(
            f"cannot find libraries of the NVIDIA driver {version} by `ldconfig -p`",
            "is the driver's user space installed in this version? run ldconfig",
        )
    found = []
    for directory in directories:
        for pattern in (f"*{suffix}", f"vdpau/*{suffix}", "libnvidia-nvvm70.so.*"):
            found += sorted(glob.glob(os.path.join(glob.escape(directory), pattern)))
    return [
        (path, soname) for path in found for soname in [read_soname(path)] if soname is not None
    ]


def read_soname(path: str) -> Optional[str]:
    """How a library is called; None for what is no library."""
    with suppress(OSError, elf.NotElfError):
        return elf.read(path).soname
    return None


def read_mig_minors(text: str) -> Dict[str, int]:
    """Read ``gpu0/gi1/ci0/access 13``: capability → number of its node."""
    return {name: int(number) for name, number in re.findall(r"^(\S+) ([0-9]+)$", text, re.M)}


def drm_nodes(bus: str) -> Tuple[str, ...]:
    """The nodes in /dev/dri of the GPU at a PCI address."""
    links = (f"/dev/dri/by-path/pci-{bus}-{kind}" for kind in ("card", "render"))
    return tuple(os.path.realpath(link) for link in links if os.path.exists(link))
