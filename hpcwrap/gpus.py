"""GPUs as schedulers name them: lists of numbers and UUIDs in variables, read into one shape.

Each vendor's library has a variable of its own; schedulers set one or several of them, to the
same list (gres.conf(5) of Slurm, pbs_cgroups of PBS, LSB_GPU_* of LSF).
"""

from __future__ import annotations

import re
from typing import Dict, Mapping, NamedTuple, Sequence, Tuple

VENDORS = {
    "CUDA_VISIBLE_DEVICES": "nvidia.com",
    "ROCR_VISIBLE_DEVICES": "amd.com",
    "HIP_VISIBLE_DEVICES": "amd.com",
    "ZE_AFFINITY_MASK": "intel.com",
    "GPU_DEVICE_ORDINAL": "",
}
"""Variable → vendor as CDI specs name it; OpenCL's is anyone's."""

NUMBERED = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
)
"""Variables whose numbers Slurm sets for each step; HIP's count what ROCR's leave."""

JOB_VARIABLE = "SLURM_JOB_GPUS"
"""In Slurm's prolog: the job's GPUs by their numbers on the node."""

NOTHING = ("", "-1", "none", "void", "nodevfiles", "no_dev_files")
"""What ends a list: CUDA takes nothing that follows an invalid number (CUDA C++ guide, 5.3)."""


class Gpus(NamedTuple):
    """GPUs that a scheduler gave a job on this node; empty `names`: none.

    `names` are numbers on the node, or UUIDs.  `vendors` are those whose variables were set, empty
    where nothing tells.  With `renumber` the variables of the job's processes count all GPUs of
    the node, without it those that the job can open.
    """

    names: Tuple[str, ...]
    vendors: Tuple[str, ...] = ()
    renumber: bool = False


NO_GPUS = Gpus(())


def read_gpus(environ: Mapping[str, str]) -> Gpus:
    """Find out which GPUs a job was given, from the variables of a prolog or a launch hook.

    UUIDs count before numbers: Slurm's numbers of MIG devices are positions in gres.conf, which
    nobody else knows.
    """
    lists = {name: parse_list(environ[name]) for name in VENDORS if name in environ}
    lists = {name: names for name, names in lists.items() if names}
    exact = [names for names in lists.values() if not all(map(is_number, names))]
    counted = parse_list(environ.get(JOB_VARIABLE, ""))
    found = next(iter([*exact, *([counted] if counted else []), *lists.values()]), ())
    vendors = dict.fromkeys(VENDORS[name] for name in lists if VENDORS[name])
    return Gpus(found, tuple(vendors))


def parse_list(text: str) -> Tuple[str, ...]:
    """Read a list as the vendors' libraries do, each name once.

    >>> parse_list("GPU:2, 0.1,0.0 ,-1,3")
    ('2', '0')
    """
    found: Dict[str, None] = {}
    for word in text.split(","):
        name = re.sub(r"^(gpu|mig):", "", word.strip(), flags=re.IGNORECASE)
        if name.lower() in NOTHING:
            break
        # A tile of Intel's, DEVICE.TILE: the device as a whole has the node.
        found[re.sub(r"^([0-9]+)\.[0-9]+$", r"\1", name)] = None
    return tuple(found)


def is_number(name: str) -> bool:
    """True for the number of a GPU, False for a UUID."""
    return re.fullmatch(r"[0-9]{1,6}", name, re.ASCII) is not None


def new_numbers(visible: Sequence[int]) -> str:
    """The numbers that remain when only some of a node's GPUs can be opened, as OLD=NEW,…

    Empty where nothing changes.  The libraries count the devices that they can open, in the order
    of their numbers on the node.

    >>> new_numbers([3, 1])
    '1=0,3=1'
    """
    table = {old: new for new, old in enumerate(sorted(visible))}
    if all(old == new for old, new in table.items()):
        return ""
    return ",".join(f"{old}={new}" for old, new in table.items())
