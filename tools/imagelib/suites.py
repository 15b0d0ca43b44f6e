"""Small images of one MPI from one suite of Debian: what it takes to run it, a shell, and no more.

Packages are unpacked and not configured, which takes seconds: nothing in there is to run but what
finds its libraries by itself. (So mpirun has its own name alone: mpirun.openmpi.)
"""

from __future__ import annotations

import os
from functools import partial
from typing import Sequence

from clusterlib.roots import UNDATED

from imagelib import debian
from imagelib.commands import run
from imagelib.layers import read_entries
from imagelib.oci import Layer
from imagelib.recipes import SYSTEM_PATH, Recipe, settings

BOOKWORM = debian.SUITE
BASE = ("base-files", "dash", "coreutils")


def mirror() -> str:
    """This machine's mirror, which has the other suites as well."""
    return next(uri for _, uri, name, *_ in map(str.split, debian.sources()) if name == BOOKWORM)


def unpack(suite: str, packages: Sequence[str], tar: str) -> None:
    """Unpack packages of a suite with all that they need, from this machine's mirror."""
    include = f"--include={','.join((*BASE, *packages))}"
    source = f"deb {mirror()} {suite} main"
    words = ["--mode=root", "--variant=extract", UNDATED, include]
    run(["mmdebstrap", *words, suite, tar, source])


def layers(suite: str, packages: Sequence[str], work: str) -> list[Layer]:
    """One layer, as the packages have it."""
    tar = os.path.join(work, "root.tar")
    unpack(suite, packages, tar)
    return [Layer(read_entries(tar), f"Debian {suite}: {' '.join(packages)}")]


def recipe(name: str, title: str, suite: str, *packages: str) -> Recipe:
    """An image of one suite; the cache knows it by this module and its name."""
    make = partial(layers, suite, packages)
    make.__module__ = __name__
    return Recipe(name, make, settings(name, title, SYSTEM_PATH, "/", "sh"))


OPENMPI_13 = recipe("openmpi-13", "Open MPI 5 and PMIx 5", "trixie", "openmpi-bin")
OPENMPI_SID = recipe("openmpi-sid", "Open MPI 6 and PMIx 7", "sid", "openmpi-bin")
MPICH_12 = recipe("mpich-12", "MPICH 4.0, which knows PMI2 only", "bookworm", "libmpich12")
SUITES = {each.name: each for each in (OPENMPI_13, OPENMPI_SID, MPICH_12)}
