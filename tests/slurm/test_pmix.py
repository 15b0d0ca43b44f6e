"""The image's MPI meets Slurm's PMIx and PMI2: what goes together, and what is said where not."""

from __future__ import annotations

import pytest
from mpi_images import add_images, compile_program, found_each_other, srun
from site_tools import Site, has_pmix, own_packages

pytestmark = pytest.mark.slurm

WARNING = "hpcwrap: warning: the image's MPI is"


@pytest.fixture(name="openmpi", scope="module")
def program_of_open_mpi(site: Site) -> str:
    add_images(site, "openmpi-13")
    return compile_program(site, "openmpi")


@pytest.fixture(name="mpich", scope="module")
def program_of_mpich(site: Site) -> str:
    add_images(site, "mpich-12")
    return compile_program(site, "mpich")


def test_pmix_5_in_the_image_speaks_to_the_hosts_pmix_4(
    site: Site, pmix: None, openmpi: str
) -> None:
    ran = srun(site, "openmpi-13", "pmix", openmpi)
    assert found_each_other(ran)
    assert WARNING not in ran.stderr


def test_open_mpi_5_under_pmi2_is_warned_of(site: Site, openmpi: str) -> None:
    ran = srun(site, "openmpi-13", "pmi2", openmpi)
    assert not found_each_other(ran), "if this works now, the warning can go"
    expected = "Open MPI, which speaks PMIx only: its ranks do not find each other under --mpi=pmi2"
    without = "this scheduler was built without PMIx: use `mpirun`"
    remedy = "use `srun --mpi=pmix`" if has_pmix(site) else without
    assert f"{WARNING} {expected} ({remedy})" in ran.stderr
    assert ran.stderr.count(WARNING) == 1, "once for a step"


def test_mpich_without_pmix_is_warned_of_under_pmix(site: Site, pmix: None, mpich: str) -> None:
    ran = srun(site, "mpich-12", "pmix", mpich)
    assert not found_each_other(ran), "if this works now, the warning can go"
    expected = "MPICH without PMIx: its ranks do not find each other under --mpi=pmix"
    assert f"{WARNING} {expected} (use `srun --mpi=pmi2`)" in ran.stderr


def test_mpich_finds_pmi2_in_a_job_without_being_told(site: Site, mpich: str) -> None:
    job = site.batch(f"#!/bin/sh\nsrun {mpich}\n", "-N2", "-n2", "--time=2", "--container=mpich-12")
    assert "the ranks of 2 processes add up to 1: right" in job.output
    assert WARNING not in job.output


def test_a_step_of_one_rank_needs_no_words(site: Site, openmpi: str) -> None:
    ran = site.alice("srun", "-n1", "--mpi=pmi2", "--container=openmpi-13", openmpi)
    assert found_each_other(ran, ranks=1)
    assert WARNING not in ran.stderr


@own_packages
def test_the_hosts_mpich_takes_the_place_of_the_images(site: Site, mpich: str) -> None:
    # Two, for with more ranks a node MPICH hangs more often (mpi_images.srun).
    ran = srun(site, "mpich-12-host", "pmi2", mpich, ranks=2)
    assert found_each_other(ran, ranks=2)
    library = "/usr/lib/x86_64-linux-gnu/libmpich.so.12"
    both = ["stat", "-L", "-c", "%d:%i", library, f"/.host{library}"]
    inside, host = srun(site, "mpich-12-host", "none", *both, ranks=2).stdout.split()[:2]
    assert inside == host
