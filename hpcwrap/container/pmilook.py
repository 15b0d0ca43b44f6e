"""Looking at libraries for what of PMI they speak: by their names and their text, never run.

Imported once for each image of a node; pmi.py keeps what was found.
"""

from __future__ import annotations

import glob
import os
import re
from typing import Sequence

from hpcwrap.container import elf, libraries, mpi, rootfs
from hpcwrap.container.elf import Kind, NotElfError, Version
from hpcwrap.container.imagelibraries import Found, ImageLibraries
from hpcwrap.container.pmi import HostPmi, ImagePmi

PMIX = "libpmix.so.2"
OPEN_MPI, MPICH = (family.names for family in mpi.FAMILIES)

SIZE = 64 << 20
"""Enough for any MPI library; Debian's MPICH, the largest, has 41 MB."""

VERSION_TEXT = re.compile(rb"(?:Open)?PMIx ([0-9]+\.[0-9]+\.[0-9]+)")
"""``OpenPMIx 4.2.2 (PMIx Standard: …`` in 4 and later, ``PMIx 3.1.5`` before."""

PMI2, PMIX_PLUGIN = "mpi_pmi2.so", "mpi_pmix*.so"
PMI2_PLACES = (
    "/usr/lib/*/slurm*/mpi_pmi2.so",
    "/usr/lib64/slurm/mpi_pmi2.so",
    "/usr/lib/slurm/mpi_pmi2.so",
    "/usr/local/lib/slurm/mpi_pmi2.so",
    "/opt/slurm/lib*/slurm/mpi_pmi2.so",
)
"""Slurm's servers of PMI; those of PMIx are files beside that of PMI2."""


def look(root: int) -> ImagePmi:
    """What the MPI libraries of the image speak whose root is open; nothing for no MPI."""
    image = ImageLibraries(root, own_kind(), mpi.DIRECTORIES)
    pmix = _content(root, image.find(PMIX))
    mpich = [each for name in MPICH for each in image.find(name)]
    return ImagePmi(
        pmix=pmix_version(pmix),
        munge=speaks_munge(pmix),
        open_mpi=_version([each for name in OPEN_MPI for each in image.find(name)]),
        mpich=_version(mpich),
        mpich_pmix=needs_pmix(_content(root, mpich)),
    )


def host_pmi(kept: str) -> HostPmi:
    """What the scheduler's PMIx is: the host's libpmix, as ldconfig(8) knows it."""
    path = libraries.kept_find([PMIX], kept).get(PMIX)
    try:
        with open(path or os.devnull, "rb") as file:
            content = file.read(SIZE)
    except OSError:
        content = b""
    pmi2 = any(glob.glob(pattern) for pattern in PMI2_PLACES)
    served = any(glob.glob(pattern.replace(PMI2, PMIX_PLUGIN)) for pattern in PMI2_PLACES)
    return HostPmi(pmix_version(content), speaks_munge(content), pmi2, pmi2 and not served)


def pmix_version(content: bytes) -> Version:
    """The version of a libpmix; empty where it does not say."""
    match = VERSION_TEXT.search(content)
    return elf.parse_version(match.group(1).decode()) if match else ()


def needs_pmix(content: bytes) -> bool:
    """True when a library was linked with libpmix, whose name stands in its dynamic strings."""
    return b"\0" + PMIX.encode() + b"\0" in content


def speaks_munge(content: bytes) -> bool:
    """True when a libpmix has the security component for munge built in, as servers like it."""
    return b"psec_munge" in content


def own_kind() -> Kind:
    """The kind of this host's programs."""
    with open("/proc/self/exe", "rb") as file:
        try:
            return elf.read_kind(file.read(elf.HEADER_SIZE))
        except NotElfError:
            return Kind(2, 62)


def _version(found: Sequence[Found]) -> Version:
    return found[0].version if found else ()


def _content(root: int, found: Sequence[Found]) -> bytes:
    return rootfs.read_file(root, found[0].path, SIZE) if found else b""
