"""InfiniBand and other fabrics: whose libraries drive them inside, or none at all.

Device nodes need nothing: /dev is the host's, with the host's permissions, and so is /sys.
"""

from __future__ import annotations

from hpcwrap.container.addition import Addition
from hpcwrap.container.hiding import Hide
from hpcwrap.environment import Machine

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

NO_FABRIC = Hide((*DEVICES, *CLASSES), "fabric")


def addition(wanted: Machine) -> Addition:
    """Plan the fabric; an image brings its own libraries unless the host's are asked for."""
    if wanted.fabric == "none":
        return Addition(operations=(NO_FABRIC,))
    return Addition()
