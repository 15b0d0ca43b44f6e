"""The image for mpirun and ssh: launchers of Open MPI and MPICH, OpenSSH, Python with numpy."""

from __future__ import annotations

import os

from imagelib import debian
from imagelib.layers import read_entries
from imagelib.oci import Layer
from imagelib.recipes import SYSTEM_PATH, Recipe, settings

PACKAGES = ("openmpi-bin", "mpich", "openssh-client", "openssh-server", "procps", "python3-numpy")


def mpirun_layers(work: str) -> list[Layer]:
    """One layer, as Debian has it; no compiler, for that is half of what MPI's packages bring."""
    tar = os.path.join(work, "root.tar")
    debian.bootstrap(PACKAGES, tar)
    return [Layer(read_entries(tar), f"Debian {debian.SUITE}: {' '.join(PACKAGES)}")]


MPIRUN_12 = Recipe(
    "mpirun-12",
    mpirun_layers,
    settings("mpirun-12", "mpirun and ssh", SYSTEM_PATH, "/", "bash"),
)
