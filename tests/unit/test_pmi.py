"""What goes with what: the image's MPI and the scheduler's PMIx and PMI2."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcwrap.container import pmi, pmilook
from hpcwrap.container.operations import Findings
from hpcwrap.container.pmi import CheckPmi, HostPmi, ImagePmi, compare, speak
from hpcwrap.environment import Variable

SLURM = HostPmi(pmix=(4, 2, 2), munge=True, pmi2=True)
OPEN_MPI_4 = ImagePmi(pmix=(4, 2, 2), munge=True, open_mpi=(40, 30, 4))
OPEN_MPI_5 = OPEN_MPI_4._replace(pmix=(5, 0, 7), open_mpi=(40, 40, 7))
MPICH = ImagePmi(mpich=(12, 2, 2))


def notes(image: ImagePmi, host: HostPmi = SLURM) -> list[tuple[str, str]]:
    return [(note.variable, note.value) for note in compare(image, host).notes]


@pytest.mark.parametrize("image", [ImagePmi(), OPEN_MPI_4, MPICH._replace(mpich_pmix=True)])
def test_what_goes_together_needs_no_words(image: ImagePmi) -> None:
    assert compare(image, SLURM) == Findings()


def test_mpich_without_pmix_is_started_by_pmi2() -> None:
    found = compare(MPICH, SLURM)
    assert found.variables == (Variable("default", "SLURM_MPI_TYPE", "pmi2"),)
    assert notes(MPICH) == [("SLURM_MPI_TYPE", "pmix")]
    assert "use `srun --mpi=pmi2`" in found.notes[0].text


def test_without_pmi2_on_the_host_nothing_is_chosen() -> None:
    assert compare(MPICH, SLURM._replace(pmi2=False)).variables == ()


def test_open_mpi_5_knows_no_pmi2() -> None:
    assert notes(OPEN_MPI_5) == [("SLURM_MPI_TYPE", "pmi2")]
    assert compare(OPEN_MPI_5, SLURM).variables == ()


def test_where_the_scheduler_has_no_pmix_mpirun_is_the_way() -> None:
    (note,) = compare(OPEN_MPI_5, SLURM._replace(no_pmix=True)).notes
    assert note.text.endswith(
        "under --mpi=pmi2 (this scheduler was built without PMIx: use `mpirun`)"
    )


def test_of_an_image_with_both_nobody_knows_which_is_used() -> None:
    assert compare(OPEN_MPI_5._replace(mpich=(12, 4, 1)), SLURM) == Findings()


@pytest.mark.parametrize(
    ("pmix", "munge", "server", "variables"),
    [((5, 0, 5), False, True, 1), ((5, 0, 5), False, False, 0), ((7, 0, 0), False, True, 0)],
)
def test_without_munge_the_servers_second_choice_is_taken_at_once(
    pmix: tuple[int, ...], munge: bool, server: bool, variables: int
) -> None:
    image = OPEN_MPI_4._replace(pmix=pmix, munge=munge)
    found = compare(image, SLURM._replace(munge=server))
    expected = (Variable("default", "PMIX_MCA_psec", "native"),)
    assert found.variables == expected[:variables]


@pytest.mark.parametrize(
    ("client", "server", "works"),
    [
        ((4, 2, 2), (4, 2, 2), True),
        ((5, 0, 7), (4, 2, 2), True),
        ((7, 0, 0), (4, 2, 2), True),
        ((3, 1, 5), (5, 0, 1), True),
        ((2, 0, 3), (4, 2, 2), True),
        ((2, 0, 2), (4, 2, 2), False),
        ((2, 1, 0), (3, 1, 0), False),
        ((1, 2, 5), (2, 1, 1), True),
        ((1, 1, 5), (4, 2, 2), False),
        ((4, 2, 2), (2, 1, 0), False),
        ((2, 0, 1), (2, 0, 2), True),
    ],
)
def test_which_versions_of_pmix_speak_to_each_other(
    client: tuple[int, ...], server: tuple[int, ...], works: bool
) -> None:
    assert speak(client, server) is works
    image = OPEN_MPI_4._replace(pmix=client)
    said = compare(image, SLURM._replace(pmix=server)).notes
    assert bool(said) is not works
    assert works or f"PMIx {'.'.join(map(str, client))} does not speak" in said[0].text


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (b"\0OpenPMIx 4.2.2rc2 (PMIx Standard: 4.2, Stable ABI: 0.0)\0", (4, 2, 2)),
        (b"\0OpenPMIx 7.0.0rc1 (PMIx Standard: 4.1", (7, 0, 0)),
        (b"\0PMIx 3.1.5, repo rev: v3.1.5\0", (3, 1, 5)),
        (b"\0no version\0", ()),
    ],
)
def test_the_version_is_in_the_librarys_text(text: bytes, version: tuple[int, ...]) -> None:
    assert pmilook.pmix_version(text) == version


@pytest.mark.skipif(
    not os.path.exists("/usr/lib/x86_64-linux-gnu/libpmix.so.2"),
    reason="needs PMIx and Slurm (see tools/packages)",
)
def test_the_hosts_own_pmix_is_found(tmp_path: object) -> None:
    """Debian 12's: what tools/packages installs for the cluster."""
    host = pmilook.host_pmi(str(tmp_path))
    assert host.pmix[:2] == (4, 2)
    assert host.munge
    assert host.pmi2
    assert pmi.compare(OPEN_MPI_4, host) == Findings()


@pytest.mark.parametrize(("own_mpi", "kinds"), [(True, ["pmi2"]), (False, [])])
def test_the_hosts_mpi_takes_nothing_from_what_the_images_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_mpi: bool, kinds: list[str]
) -> None:
    monkeypatch.setattr(pmilook, "look", lambda _root: MPICH._replace(pmix=(4, 2, 2)))
    monkeypatch.setattr(pmilook, "host_pmi", lambda _kept: SLURM)
    squashfs = str(tmp_path / "image.sqsh")
    workshop = SimpleNamespace(squashfs=squashfs, root=-1, findings=Findings())
    CheckPmi(own_mpi, str(tmp_path)).execute(workshop)  # type: ignore[arg-type]
    found = workshop.findings.variables
    assert [each.value for each in found if each.name == "SLURM_MPI_TYPE"] == kinds
    assert Variable("default", "PMIX_MCA_psec", "native") in found
