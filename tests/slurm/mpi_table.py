"""Open MPI of images under Slurm's releases: `python tests/slurm/mpi_table.py`.

test_mpi_table.py tries each cell; this writes them into docs/admins.md, between its marks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, Tuple

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

import guide_tables  # noqa: E402  (the path has to be set first)

GUIDE = REPOSITORY / "docs" / "admins.md"

WORKS, REFUSED = "works", "refused by srun: no PMIx"
SERVERS = {
    "22.05": "Slurm 22.05, PMIx 4.2 (Debian 12)",
    "24.11": "Slurm 24.11, PMIx 5.0 (Debian 13)",
    "26.05": "Slurm 26.05, built without PMIx (sid)",
}
IMAGES = {
    "debian-12": "Open MPI 4.1, PMIx 4.2 (Debian 12)",
    "openmpi-13": "Open MPI 5.0, PMIx 5.0 (Debian 13)",
    "openmpi-sid": "Open MPI 6.0, PMIx 7.0 (sid)",
}
SRUN, MPIRUN = "srun --mpi=pmix", "mpirun"
TABLE: Dict[Tuple[str, str], Dict[str, str]] = {
    ("22.05", SRUN): dict.fromkeys(IMAGES, WORKS),
    ("22.05", MPIRUN): dict.fromkeys(IMAGES, WORKS),
    ("24.11", SRUN): dict.fromkeys(IMAGES, WORKS),
    ("24.11", MPIRUN): dict.fromkeys(IMAGES, WORKS),
    ("26.05", SRUN): dict.fromkeys(IMAGES, REFUSED),
    ("26.05", MPIRUN): dict.fromkeys(IMAGES, WORKS),
}
"""What comes of ranks on two nodes, by the release of Slurm and what starts them."""


def render() -> str:
    """The table in Markdown: a row for each release of Slurm and each way."""
    rows = [
        [SERVERS[release], f"`{way}`", *found.values()] for (release, way), found in TABLE.items()
    ]
    headings = ["", "ranks by", *IMAGES.values()]
    return "".join(f"{line}\n" for line in guide_tables.table(headings, rows))


def rewritten(text: str) -> str:
    """The guide with the table as it is now."""
    return guide_tables.rewritten(text, "tests/slurm/mpi_table.py", render())


if __name__ == "__main__":
    GUIDE.write_text(rewritten(GUIDE.read_text()))
