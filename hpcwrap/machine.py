"""The machine inside the container: what of the job's node, beside its files, a container gets.

`additions` is the story; each part is planned by a module of the container room.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, List, Optional, Tuple

from hpcwrap import paths
from hpcwrap.config import Settings
from hpcwrap.container import memory
from hpcwrap.container.addition import Addition
from hpcwrap.environment import Environment, Machine, replace_rlimits

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus
    from hpcwrap.job import User
    from hpcwrap.schedulers import Launcher

NOTHING = Machine()

INFINIBAND = "/sys/class/infiniband"
"""Is there where the kernel has the code for InfiniBand and its kin."""


def additions(
    environment: Environment,
    settings: Settings,
    *,
    asked: Machine = NOTHING,
    gpus: Optional[Gpus] = None,
    launcher: Optional[Launcher] = None,
    user: Optional[User] = None,
    pmi: bool = False,
    cgroups: Optional[Tuple[str, ...]] = None,
) -> List[Addition]:
    """What the parts of the machine add to the container of a job.

    `asked` is what the job asked for itself, `gpus` are those that its scheduler gave it;
    `launcher` is how it reaches its other nodes, `user` whose it is; `pmi` says that its scheduler
    serves PMIx and PMI2; `cgroups` are the job's own, those that its scheduler makes later not
    among them, None where it has none.
    """
    wanted = of_machine(environment, settings, asked)
    return [
        memory.addition(wanted),
        cgroup_addition(cgroups),
        fabric_addition(wanted),
        # First what the image has, then what takes its place.
        pmi_addition(wanted, pmi=pmi),
        mpi_addition(wanted, settings),
        device_addition(wanted, gpus, settings, insists=asked.gpus is not None),
        Addition(rlimits=wanted.rlimits),
        launch_addition(launcher, user),
    ]


def fabric_addition(wanted: Machine) -> Addition:
    """InfiniBand and other fabrics: nothing, where there are none or the image has it all."""
    if wanted.fabric == "image" and not os.path.isdir(INFINIBAND):
        return Addition()
    from hpcwrap.container import fabric

    return fabric.addition(wanted)


def cgroup_addition(cgroups: Optional[Tuple[str, ...]]) -> Addition:
    """The job's limits to be read inside: nothing, where it has no cgroup of its own."""
    if cgroups is None:
        return Addition()
    from hpcwrap.container import cgroupview

    return Addition(operations=(cgroupview.CgroupView(cgroups, cgroupview.is_unified()),))


def device_addition(
    wanted: Machine, gpus: Optional[Gpus], settings: Settings, *, insists: bool = False
) -> Addition:
    """GPUs and other CDI devices: nothing, where the node has no specs and nobody wants any.

    With `insists` it is the job itself that wants the GPUs, on this very node.
    """
    wants = gpus or wanted.devices or wanted.gpus not in (None, "scheduler", "none")
    if not wants and not any(map(os.path.isdir, settings.cdi_directories)):
        return Addition()
    from hpcwrap.container import devices

    return devices.addition(wanted, gpus, settings, insists=insists)


def launch_addition(launcher: Optional[Launcher], user: Optional[User]) -> Addition:
    """mpirun and ssh to the job's other nodes: nothing, where there is no way to them."""
    if launcher is None or user is None:
        return Addition()
    from hpcwrap.container import launch

    file = launch.LauncherFile(launcher.words, launcher.nodes, launcher.unset)
    programs = paths.inside_programs(launcher.program)
    return launch.addition(file, user, programs, hydra=launcher.hydra, defaults=launcher.defaults)


def pmi_addition(wanted: Machine, *, pmi: bool) -> Addition:
    """Whether the image's MPI and the scheduler's PMIx go together."""
    if not pmi:
        return Addition()
    from hpcwrap.container.pmi import CheckPmi

    return Addition(operations=(CheckPmi(own_mpi=wanted.mpi == "image"),))


def mpi_addition(wanted: Machine, settings: Settings) -> Addition:
    """The host's MPI in place of the image's, where that is wanted."""
    if wanted.mpi != "host":
        return Addition()
    from hpcwrap.container import mpi

    return mpi.addition(settings.mpi_libraries)


def of_machine(environment: Environment, settings: Settings, asked: Machine = NOTHING) -> Machine:
    """What a job asks for, or else its environment, and the site's settings as the last."""
    said = environment.machine
    return Machine(
        gpus=asked.gpus or said.gpus or settings.gpus,
        fabric=said.fabric or settings.fabric,
        mpi=said.mpi or settings.mpi,
        devices=(*(said.devices or ()), *(asked.devices or ())),
        rlimits=replace_rlimits(settings.rlimits, said.rlimits),
        shm_size=said.shm_size or settings.shm_size,
    )
