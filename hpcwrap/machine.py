"""The machine inside the container: what of the job's node, beside its files, a container gets.

`additions` is the story; each part is planned by a module of the container room.
"""

from __future__ import annotations

import os
from typing import List

from hpcwrap.config import Settings
from hpcwrap.container import memory
from hpcwrap.container.addition import Addition
from hpcwrap.environment import Environment, Machine, replace_rlimits

INFINIBAND = "/sys/class/infiniband"
"""Is there where the kernel has the code for InfiniBand and its kin."""


def additions(environment: Environment, settings: Settings) -> List[Addition]:
    """What the parts of the machine add to the container of a job."""
    wanted = of_machine(environment, settings)
    return [
        memory.addition(wanted),
        fabric_addition(wanted),
        Addition(rlimits=wanted.rlimits),
    ]


def fabric_addition(wanted: Machine) -> Addition:
    """InfiniBand and other fabrics: nothing, where there are none or the image has it all."""
    if wanted.fabric == "image" and not os.path.isdir(INFINIBAND):
        return Addition()
    from hpcwrap.container import fabric

    return fabric.addition(wanted)


def of_machine(environment: Environment, settings: Settings) -> Machine:
    """What an environment says of the machine, and the site's settings where it says nothing."""
    said = environment.machine
    return Machine(
        gpus=said.gpus or settings.gpus,
        fabric=said.fabric or settings.fabric,
        mpi=said.mpi or settings.mpi,
        devices=said.devices or (),
        rlimits=replace_rlimits(settings.rlimits, said.rlimits),
        shm_size=said.shm_size or settings.shm_size,
    )
