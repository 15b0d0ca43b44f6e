"""How the image's MPI meets the scheduler's: PMIx or PMI2, and whose versions go together.

Ranks whose MPI does not understand the scheduler's server do not fail: each runs alone, as rank 0
of 1, or waits for ever.  So what an image has is looked at once, and kept, and steps are warned.
docs/decisions/0080 has the rules and where they come from.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import paths
from hpcwrap.container.operations import Findings, Note, Workshop
from hpcwrap.environment import Variable
from hpcwrap.record import publish

Version = Tuple[int, ...]

LD_CACHE = "/etc/ld.so.cache"

KIND = "SLURM_MPI_TYPE"
"""What srun's --mpi was, in each rank's variables; and the default of a later srun's."""

CROSS_VERSION: Dict[Version, Version] = {(1, 2): (1, 2, 5), (2, 0): (2, 0, 3), (2, 1): (2, 1, 1)}
"""The first releases of a series that speak to other series; all from 3.0 on do."""


class ImagePmi(NamedTuple):
    """What an image's MPI libraries speak, as far as their files tell.

    `pmix` is the version of its PMIx, `munge` whether that can use munge.  `open_mpi` and `mpich`
    are the versions of the libraries' files, empty for none; `mpich_pmix` says that MPICH was built
    with PMIx.
    """

    pmix: Version = ()
    munge: bool = False
    open_mpi: Version = ()
    mpich: Version = ()
    mpich_pmix: bool = False

    @property
    def pmi2_only(self) -> bool:
        """True for images whose one MPI is an MPICH without PMIx."""
        return bool(self.mpich) and not self.open_mpi and not self.mpich_pmix

    @property
    def pmix_only(self) -> bool:
        """True for images whose one MPI is Open MPI 5 or later, which dropped PMI1 and PMI2."""
        return self.open_mpi >= (40, 40) and not self.mpich


class HostPmi(NamedTuple):
    """The scheduler's side: its PMIx, whether that uses munge, and what its server can.

    `no_pmix` is True where it is known to have PMI2 alone, whatever libpmix the host has.
    """

    pmix: Version = ()
    munge: bool = False
    pmi2: bool = False
    no_pmix: bool = False


def compare(image: ImagePmi, host: HostPmi) -> Findings:
    """The rules; pure."""
    variables: List[Variable] = []
    notes: List[Note] = []
    if image.pmi2_only:
        notes.append(_wrong_kind("pmix", "MPICH without PMIx", "use `srun --mpi=pmi2`"))
        variables += [Variable("default", KIND, "pmi2")] if host.pmi2 else []
    if image.pmix_only:
        notes.append(_wrong_kind("pmi2", "Open MPI, which speaks PMIx only", _pmix(host)))
    if image.pmix and host.pmix and not speak(image.pmix, host.pmix):
        notes.append(_wrong_version(image.pmix, host.pmix))
    if image.pmix and not image.munge and host.munge and image.pmix < (6,):
        # The server offers both; the client complains of the first before it takes the other.
        variables.append(Variable("default", "PMIX_MCA_psec", "native"))
    return Findings(tuple(variables), tuple(notes))


def speak(client: Version, server: Version) -> bool:
    """Whether PMIx of two versions understand each other."""
    if client[:2] == server[:2]:
        return True
    return all(each >= CROSS_VERSION.get(each[:2], (3,)) for each in (client, server))


def _pmix(host: HostPmi) -> str:
    """How ranks get PMIx."""
    if host.no_pmix:
        return "this scheduler was built without PMIx: use `mpirun`"
    return "use `srun --mpi=pmix`"


def _wrong_kind(kind: str, what: str, remedy: str) -> Note:
    return Note(
        KIND,
        kind,
        f"the image's MPI is {what}: its ranks do not find each other under "
        f"--mpi={kind} ({remedy})",
    )


def _wrong_version(image: Version, host: Version) -> Note:
    ours, theirs = (".".join(map(str, version)) for version in (image, host))
    return Note(
        KIND,
        "pmix",
        f"the image's PMIx {ours} does not speak to the host's {theirs}: MPI may hang or fail "
        "(use an image with PMIx 3 or later, or `srun --mpi=pmi2` if its MPI can)",
    )


class CheckPmi(NamedTuple):
    """Look at the image's MPI, and leave what its ranks need to know.

    Without `own_mpi` ranks get the host's MPI, which meets the host's scheduler as it does outside:
    then only the image's PMIx counts, which may be the newer one.  `kept` is where what was found
    stays for the next job.
    """

    own_mpi: bool = True
    kept: str = paths.LIBRARIES

    def describe(self) -> str:
        """Say in one line what the operation does."""
        return "check of the image's MPI against the host's PMIx and PMI2"

    def execute(self, workshop: Workshop) -> None:
        """Look, or remember; never fails: what cannot be read has nothing to say."""
        path = os.path.join(self.kept, f"{os.path.basename(workshop.squashfs)}.pmi.json")
        # The file is named by the image's digest, and never changes.
        known = _read(path)
        if known is None:
            from hpcwrap.container import pmilook

            known = list(pmilook.look(workshop.root))
            _write(path, known)
        image = ImagePmi(*known)
        if not self.own_mpi:
            image = ImagePmi(image.pmix, image.munge)
        if image != ImagePmi():
            found = compare(image, self._host())
            before = workshop.findings
            workshop.findings = Findings(
                before.variables + found.variables, before.notes + found.notes
            )

    def _host(self) -> HostPmi:
        """The host's side, from what an earlier job found while ldconfig(8) has not run again."""
        path = os.path.join(self.kept, "host.pmi.json")
        known = _read(path)
        stamp = _stamp(LD_CACHE)
        if known and known[0] == stamp:
            return HostPmi(*known[1:])
        from hpcwrap.container import pmilook

        host = pmilook.host_pmi(self.kept)
        _write(path, [stamp, *host])
        return host


def _read(path: str) -> Optional[List[Any]]:
    """What an earlier job kept: JSON's lists are tuples again."""
    try:
        with open(path, encoding="utf-8") as file:
            return [tuple(each) if isinstance(each, list) else each for each in json.load(file)]
    except (OSError, ValueError, TypeError):
        return None


def _write(path: str, content: Sequence[object]) -> None:
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        publish(path, json.dumps(content).encode(), 0o600)


def _stamp(path: str) -> Tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
