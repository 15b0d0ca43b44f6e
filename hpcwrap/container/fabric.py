"""InfiniBand and other fabrics: whose libraries drive them inside, or none at all.

Device nodes need nothing: /dev is the host's, with the host's permissions, and so is /sys.
docs/decisions/0070-fabrics.md has the why.
"""

from __future__ import annotations

import os
import resource
from fnmatch import fnmatchcase
from typing import Dict, Optional, Tuple

from hpcwrap.container.addition import Addition
from hpcwrap.container.mounts import NEVER
from hpcwrap.container.operations import Bind, Operation
from hpcwrap.environment import UNLIMITED, Machine
from hpcwrap.errors import SiteError

DEVICES = (
    "/dev/infiniband",
    "/dev/hfi1*",
    "/dev/cxi*",
    "/dev/knem",
    "/dev/xpmem",
    "/dev/gdrdrv",
)

# libibverbs asks the kernel and then looks here: what is not here it does not try to open.
CLASSES = ("/sys/class/infiniband", "/sys/class/infiniband_verbs")

PRESENT = (CLASSES[0], "/sys/class/cxi")
"""Directories of sysfs with an entry for each device."""

VERBS = "libibverbs.so.1"
LIBFABRIC = "libfabric.so.1"
LIBRARIES = (
    VERBS,
    "librdmacm.so.1",
    "libibumad.so.3",
    *("libmlx4.so.1", "libmlx5.so.1", "libefa.so.1", "libmana.so.1"),
    LIBFABRIC,
    *("libpsm2.so.2", "libpsm_infinipath.so.1", "libcxi.so.1"),
)
"""What programs load by name; the drivers that two of these load by path come with them."""

DRIVER_DIRECTORIES = {VERBS: "libibverbs", LIBFABRIC: "libfabric"}
"""Directory of drivers, beside the library that loads them."""

DRIVER_LIST = "/etc/libibverbs.d"
"""Names of the drivers that libibverbs is to load (rdma-core, Documentation/libibverbs.md)."""

ENOUGH_MEMLOCK = 1 << 30


def addition(wanted: Machine) -> Addition:
    """Plan the fabric; an image brings its own libraries unless the host's are asked for.

    Raises SiteError when the host has none.
    """
    if wanted.fabric == "none":
        return Addition(operations=(no_fabric(),))
    found = host_addition(find_libraries()) if wanted.fabric == "host" else Addition()
    return found._replace(warnings=memlock_warnings(wanted))


def host_addition(found: Dict[str, str]) -> Addition:
    """Plan to bring the host's libraries into the image: `found` are their names and paths."""
    from hpcwrap.container.hostfabric import HostFabric
    from hpcwrap.container.hostlibraries import HostLibraries
    from hpcwrap.container.libraries import kept_closure

    drivers = find_drivers(found)
    libraries = HostLibraries(
        "InfiniBand and other fabrics",
        kept_closure(tuple(found.values()), drivers),
        own=tuple(found),
        cure="use an image with a newer system, or `fabric: image`",
    )
    options = ("ro", *NEVER)
    names = Bind(DRIVER_LIST, DRIVER_LIST, options, as_user=False, nofail=True, origin="fabric")
    return Addition(mounts=(names,), operations=(HostFabric(libraries, drivers),))


def find_libraries() -> Dict[str, str]:
    """The host's libraries for fabrics: name → path.  Raises SiteError when there are none."""
    from hpcwrap.container.libraries import kept_find

    found = kept_find(LIBRARIES)
    if not found:
        raise SiteError(
            f"cannot find the host's libraries for fabrics: neither {VERBS} nor {LIBFABRIC}",
            "install rdma-core on the nodes, or use `fabric: image`",
        )
    return found


def find_drivers(found: Dict[str, str]) -> Tuple[str, ...]:
    """Paths of the drivers that the host's libraries load by path."""
    drivers = []
    for library, name in DRIVER_DIRECTORIES.items():
        if library in found:
            directory = os.path.join(os.path.dirname(os.path.realpath(found[library])), name)
            drivers += [path for path in _entries(directory) if path.endswith(".so")]
    return tuple(drivers)


def no_fabric() -> Operation:
    """The operation that hides all devices of fabrics."""
    from hpcwrap.container.hiding import Hide

    return Hide((*DEVICES, *CLASSES), "fabric")


def is_fabric(path: str) -> bool:
    """True for a path of the host that `no_fabric` hides.

    >>> is_fabric("/dev/infiniband/uverbs0"), is_fabric("/dev/hfi1_0"), is_fabric("/dev/null")
    (True, True, False)
    """
    return any(fnmatchcase(path, shape) for name in DEVICES for shape in (name, f"{name}/*"))


def is_present() -> bool:
    """True on a node whose kernel drives a fabric."""
    return any(map(_entries, PRESENT))


def memlock_warnings(wanted: Machine) -> Tuple[str, ...]:
    """What is wrong on a node with a fabric that lets ranks lock little memory; or nothing.

    Where the site sets no limit, that of this process tells: the scheduler's daemon hands its
    hard limit on to what it starts.
    """
    limit = _memlock(wanted)
    if limit is None or limit >= ENOUGH_MEMLOCK or not is_present():
        return ()
    little = f"ranks may lock only {limit >> 10} KiB of memory, which is little for InfiniBand"
    return (f"{little} (set `rlimits: [memlock=unlimited]`)",)


def _memlock(wanted: Machine) -> Optional[int]:
    """Bytes that ranks may lock; None for no limit."""
    said = [limit.soft for limit in wanted.rlimits if limit.name == "memlock"]
    found = said[-1] if said else resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return None if found in (UNLIMITED, resource.RLIM_INFINITY) else found


def _entries(directory: str) -> Tuple[str, ...]:
    try:
        return tuple(os.path.join(directory, name) for name in sorted(os.listdir(directory)))
    except OSError:
        return ()
