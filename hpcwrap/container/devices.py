"""Devices of a container: which of the node's it gets, and which it must not see.

`addition` is the story.  The GPUs are those that the scheduler gave the job; what a spec says of
them is brought in, and every other GPU that any spec names cannot be opened inside.
"""

from __future__ import annotations

import glob
import os
import re
from typing import Dict, List, Optional, Sequence, Set, Tuple

from hpcwrap import gpus as naming
from hpcwrap.config import Settings
from hpcwrap.container import cdi, hooks
from hpcwrap.container.addition import Addition
from hpcwrap.container.cdi import ALL, Catalogue, Edits, Found
from hpcwrap.container.injection import (
    COMPATIBILITY,
    CudaCompatibility,
    DeviceNodes,
    Hidden,
    Links,
)
from hpcwrap.container.mounts import MountOperation
from hpcwrap.container.operations import ATTRIBUTES, Bind, Operation, Tmpfs
from hpcwrap.environment import Machine, Mount, Variable
from hpcwrap.errors import SiteError
from hpcwrap.gpus import NO_GPUS, Gpus

GENERATE = (
    "for NVIDIA's, root runs `hpcwrap cdi generate nvidia --output /etc/cdi/nvidia.yaml` on the "
    "node; other vendors' tools write theirs"
)

NO_SPEC = "this node has no CDI spec of a GPU"

DRIVER_NODES = ("/dev/nvidia[0-9]*", "/dev/kfd")
"""Device nodes that NVIDIA's and AMD's drivers make for GPUs, and for nothing else."""

CURE = "use an image with a newer system, or an environment with gpus: none"

DRIVERS = "/.hpcwrap/drivers"
"""Links to the libraries, for who looks for a file, with or without the number (Triton does)."""

WIDE = 2
"""ELFCLASS64; there is no place for the 32-bit libraries that some drivers bring."""

COUNTED = re.compile("(gpu)?([0-9]+)")

COMPATIBLE = (
    *("libcuda.so.1", "libcudadebugger.so.1", "libnvidia-ptxjitcompiler.so.1"),
    *("libnvidia-nvvm.so.4", "libnvidia-gpucomp.so"),
)
"""What an image may have newer than the driver: NVIDIA's forward compatibility package."""


def addition(
    wanted: Machine, given: Optional[Gpus], settings: Settings, *, insists: bool = False
) -> Addition:
    """Plan the devices of a container; `given` are the GPUs that the scheduler gave the job.

    Raises SiteError for a device that no spec describes or that `fabric: none` hides, for specs
    that cannot be used, and with `insists` where all GPUs are wanted and no spec has one.
    """
    catalogue = cdi.load(settings.cdi_directories)
    cdi.check_usable(catalogue)
    gpus = chosen_gpus(wanted.gpus or "scheduler", given or NO_GPUS, catalogue)
    if wanted.gpus == "all" and insists and not gpus:
        raise SiteError(f"cannot bring all GPUs into the container: {NO_SPEC}", GENERATE)
    named = [catalogue.find(name) for name in wanted.devices or ()]
    if wanted.fabric == "none":
        check_not_hidden(named)
    edits = cdi.chosen_edits((*gpus, *named))
    hidden = hidden_nodes(edits, catalogue)
    return Addition(
        mounts=tuple(map(mount_of, edits.mounts)),
        operations=tuple(operations_of(edits, hidden)),
        variables=(*variables_of(edits), *new_numbers(given or NO_GPUS, gpus, hidden, catalogue)),
        warnings=(*absent_warnings(hidden, catalogue), *no_spec_warnings(wanted, gpus)),
    )


def chosen_gpus(wanted: str, given: Gpus, catalogue: Catalogue) -> Tuple[Found, ...]:
    """The GPUs of a container: ``scheduler``, ``all``, ``none``, or a list of them."""
    if wanted == "none":
        return ()
    if wanted == "all":
        return tuple(found for kind in catalogue.gpu_kinds() for found in whole(kind, catalogue))
    if wanted != "scheduler":
        given = Gpus(naming.parse_list(wanted))
    return tuple(resolve(given, catalogue)) if given.names else ()


def whole(kind: str, catalogue: Catalogue) -> List[Found]:
    """All devices of a kind: the one of that name, where there is one."""
    names = catalogue.names(kind)
    return [catalogue.find(f"{kind}={name}") for name in ([ALL] if ALL in names else names)]


def resolve(given: Gpus, catalogue: Catalogue) -> List[Found]:
    """The devices that the scheduler means.  Raises SiteError."""
    kinds = catalogue.gpu_kinds()
    said = [kind for kind in kinds if kind.partition("/")[0] in given.vendors]
    matches = {kind: match_all(given, catalogue.names(kind)) for kind in said or kinds}
    fitting = {kind: names for kind, names in matches.items() if names}
    if len(fitting) != 1:
        raise no_match(given, list(fitting) or kinds, ambiguous=bool(fitting))
    kind, names = fitting.popitem()
    return [catalogue.find(f"{kind}={name}") for name in names]


def match_all(given: Gpus, known: Sequence[str]) -> List[str]:
    """The names of all GPUs as a spec has them; none when one of them is not there."""
    names = [match(name, known) for name in given.names]
    return [] if None in names else [name for name in names if name]


def match(name: str, known: Sequence[str]) -> Optional[str]:
    """The name of a GPU as a spec has it: by its number, or a UUID, cut off or not.

    >>> match("GPU-893", ["0", "GPU-8932f937"])
    'GPU-8932f937'
    """
    if name in known:
        return name
    if naming.is_number(name):
        return numbered(known).get(int(name))
    beginnings = [each for each in known if each.lower().startswith(name.lower())]
    return beginnings[0] if len(beginnings) == 1 else None


def numbered(known: Sequence[str]) -> Dict[int, str]:
    """Number → name of GPUs: N or gpuN; of cardN, which other devices have, too, their order.

    nvidia-ctk, amd-ctk and intel-cdi-specs-generator name them so.

    >>> numbered(["card2", "card1"])
    {0: 'card1', 1: 'card2'}
    """
    numbers = {int(found[2]): found[0] for found in map(COUNTED.fullmatch, known) if found}
    cards = sorted((int(name[4:]), name) for name in known if re.fullmatch("card[0-9]+", name))
    return numbers or {number: name for number, (_, name) in enumerate(cards)}


def no_match(given: Gpus, kinds: Sequence[str], *, ambiguous: bool) -> SiteError:
    """What is told when a job's GPUs are not exactly one kind's devices."""
    what = f"cannot bring the job's GPU {', '.join(given.names)} into its container"
    if ambiguous:
        return SiteError(
            f"{what}: it may be one of {', '.join(kinds)}",
            "have the scheduler set one vendor's variable: Flags= in Slurm's gres.conf",
        )
    if kinds:
        return SiteError(
            f"{what}: no CDI spec of this node has it for {', '.join(kinds)}",
            f"see `hpcwrap cdi list`; {GENERATE}",
        )
    return SiteError(f"{what}: {NO_SPEC}", GENERATE)


def check_not_hidden(named: Sequence[Found]) -> None:
    """Raise SiteError for a device that was asked for, and that `fabric: none` hides."""
    from hpcwrap.container.fabric import is_fabric

    for found in named:
        nodes = cdi.chosen_edits([found]).nodes
        path = next((node.host_path for node in nodes if is_fabric(node.host_path)), None)
        if path:
            raise SiteError(
                f"cannot bring {found.name} of `devices` into the container: `fabric: none` hides "
                f"its {path}",
                "say `fabric: image`, or leave the device out",
            )


def hidden_nodes(edits: Edits, catalogue: Catalogue) -> Tuple[str, ...]:
    """Paths on the host of GPUs' device nodes that are not among what a container gets."""
    given = {node.host_path for node in edits.nodes}
    kinds = set(catalogue.gpu_kinds())
    nodes: Dict[str, None] = {}
    for spec in catalogue.specs:
        if spec.kind in kinds:
            every = [spec.common, *(device.edits for device in spec.devices)]
            nodes.update((node.host_path, None) for each in every for node in each.nodes)
    return tuple(sorted(set(nodes) - given))


def absent_warnings(hidden: Sequence[str], catalogue: Catalogue) -> Tuple[str, ...]:
    """What is wrong where a GPU's node is made after the container: it cannot be covered before."""
    found = (each.device.edits.nodes for each in catalogue.devices().values())
    own = {node.host_path for nodes in found for node in nodes}
    absent = [path for path in hidden if path in own and not os.path.lexists(path)]
    if not absent:
        return ()
    cure = "load the driver at boot, as nvidia-persistenced does, or write the CDI spec anew"
    return (f"cannot keep the job from {', '.join(absent)}: not there yet ({cure})",)


def no_spec_warnings(wanted: Machine, gpus: Sequence[Found]) -> Tuple[str, ...]:
    """What is wrong where all GPUs are wanted, and no spec has those that the driver shows.

    A site may want them on all of its nodes, with GPUs or not.
    """
    if wanted.gpus != "all" or gpus or not any(map(glob.glob, DRIVER_NODES)):
        return ()
    return (f"cannot bring all GPUs into the container: {NO_SPEC} ({GENERATE})",)


def operations_of(edits: Edits, hidden: Sequence[str]) -> List[Operation]:
    """What is done when all mounts are there, in this order."""
    operations: List[Operation] = []
    if edits.nodes:
        operations.append(DeviceNodes(edits.nodes))
    links = hooks.links(edits.hooks)
    if links:
        operations.append(Links(links))
    operations += library_operations(edits)
    if hidden:
        renamed = {node.path for node in edits.nodes}
        inside = tuple(path for path in hidden if path not in renamed)
        operations.append(Hidden(inside, tuple(hidden)))
    return operations


def library_operations(edits: Edits) -> List[Operation]:
    """The devices' libraries where the image's programs find them, whatever their path is."""
    wide = [library for library in edits.libraries if library.kind[0] == WIDE]
    if not wide:
        return []
    # Jobs without a device, on a node that has some, go without these imports.
    from hpcwrap.container.elf import Kind, file_version
    from hpcwrap.container.hostlibraries import HostLibraries
    from hpcwrap.container.libraries import Closure, Library

    kind = Kind(*wide[0].kind)
    there = [Library(name_of(each), each.file, each.glibc) for each in wide if each.kind == kind]
    newest = max(there, key=lambda library: library.glibc)
    own = tuple(library.name for library in there if library.name not in COMPATIBLE)
    names = {name_of(library): library.path for library in wide}
    bare = {f"{name.partition('.so.')[0]}.so": path for name, path in names.items()}
    operations: List[Operation] = [
        HostLibraries("devices", Closure(kind, tuple(there), newest), own=own, cure=CURE),
        Links(tuple((path, f"{DRIVERS}/{name}") for name, path in {**bare, **names}.items())),
    ]
    driver = next((each.file for each in wide if each.soname == "libcuda.so.1"), None)
    if driver:
        operations.append(CudaCompatibility(file_version(os.path.basename(driver))))
    return operations


def name_of(library: cdi.Library) -> str:
    """The name that programs ask for."""
    return library.soname or os.path.basename(library.path)


def mount_of(mount: Mount) -> MountOperation:
    """A mount of a spec.  It is root's: opened with root's rights, and never with nodev alone."""
    if mount.type == "tmpfs":
        return Tmpfs(mount.target, mount.options, mount.origin)
    kept = [option for option in mount.options if option in ATTRIBUTES]
    return Bind(
        mount.source,
        mount.target,
        options=tuple(dict.fromkeys((*kept, "nosuid"))),
        recursive="bind" not in mount.options,
        as_user=False,
        origin=mount.origin,
    )


def variables_of(edits: Edits) -> List[Variable]:
    """What a spec sets, and where the libraries are for programs that look there themselves."""
    pairs = [text.partition("=") for text in edits.variables]
    variables = [Variable("set", name, value, "CDI") for name, _, value in pairs]
    if edits.libraries:
        variables.append(Variable("append", "LD_LIBRARY_PATH", DRIVERS, "CDI"))
        variables.append(Variable("prepend", "LD_LIBRARY_PATH", COMPATIBILITY, "CDI"))
    return variables


def new_numbers(
    given: Gpus, gpus: Sequence[Found], hidden: Sequence[str], catalogue: Catalogue
) -> List[Variable]:
    """Changes of the variables that hold numbers of GPUs, where hiding some changes the numbers."""
    if not (given.renumber and gpus and hidden):
        return []
    kind = gpus[0].spec.kind
    table = naming.new_numbers(visible_numbers(kind, set(hidden), catalogue))
    return [Variable("renumber", name, table, "CDI") for name in naming.NUMBERED if table]


def visible_numbers(kind: str, hidden: Set[str], catalogue: Catalogue) -> List[int]:
    """Numbers of those GPUs of a kind of which no node is hidden."""
    devices = catalogue.devices()
    visible = []
    for number, name in numbered(catalogue.names(kind)).items():
        nodes = devices[f"{kind}={name}"].device.edits.nodes
        if hidden.isdisjoint(node.host_path for node in nodes):
            visible.append(number)
    return visible
