"""Each Open MPI, as an image, under this Slurm's PMIx: what docs/admins.md says of it is so."""

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
    if mpi_table.TABLE[RELEASE][image] == mpi_table.WORKS:
        assert found_each_other(ran)
        assert WARNING not in ran.stderr
    else:
        assert ran.code != 0
        assert ran.stdout == "", "no rank runs alone"
        assert "pmix" in ran.stderr
