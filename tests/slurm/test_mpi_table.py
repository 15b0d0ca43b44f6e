"""Each Open MPI, as an image, by srun and by its mpirun: what docs/admins.md says of it is so."""

from __future__ import annotations

import mpi_table
import pytest
from mpi_images import add_images, compile_program, found_each_other, srun
from site_tools import RELEASE, Site

pytestmark = pytest.mark.slurm
WARNING = "hpcwrap: warning: the image's"


@pytest.fixture(name="program", scope="module")
def images_and_program(site: Site) -> str:
    """All the images, and one program that each of them can run."""
    add_images(site, *mpi_table.IMAGES)
    return compile_program(site, "openmpi")


def test_the_guide_says_what_is_tried() -> None:
    text = mpi_table.GUIDE.read_text()
    assert mpi_table.rewritten(text) == text, "run tests/slurm/mpi_table.py"


@pytest.mark.parametrize("image", mpi_table.IMAGES)
def test_ranks_find_each_other_or_none_starts(site: Site, program: str, image: str) -> None:
    ran = srun(site, image, "pmix", program)
    if mpi_table.TABLE[RELEASE, mpi_table.SRUN][image] == mpi_table.WORKS:
        assert found_each_other(ran)
        assert WARNING not in ran.stderr
    else:
        assert ran.code != 0
        assert ran.stdout == "", "no rank runs alone"
        assert "pmix" in ran.stderr


@pytest.mark.parametrize("image", mpi_table.IMAGES)
def test_mpirun_of_the_image_starts_them(site: Site, program: str, image: str) -> None:
    assert mpi_table.TABLE[RELEASE, mpi_table.MPIRUN][image] == mpi_table.WORKS
    script = f"#!/bin/sh\ntimeout 60 mpirun.openmpi {program}\n"
    job = site.batch(script, f"--container={image}", "-N2", "--ntasks-per-node=2")
    assert "the ranks of 4 processes add up to 6: right" in job.output, job.output
