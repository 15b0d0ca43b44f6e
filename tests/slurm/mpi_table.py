"""Open MPI of images under the PMIx of Slurm's releases: `python tests/slurm/mpi_table.py`.

test_mpi_table.py tries each cell; this writes them into docs/admins.md, between its marks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

GUIDE = Path(__file__).parents[2] / "docs" / "admins.md"
BEGIN, END = "<!-- from here on made by tests/slurm/mpi_table.py -->\n", "<!-- to here -->\n"

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
TABLE: Dict[str, Dict[str, str]] = {
    "22.05": dict.fromkeys(IMAGES, WORKS),
    "24.11": dict.fromkeys(IMAGES, WORKS),
    "26.05": dict.fromkeys(IMAGES, REFUSED),
}
"""What comes of `srun --mpi=pmix` on two nodes."""


def render() -> str:
    """The table in Markdown: a row for each release of Slurm."""
    rows = [["", *IMAGES.values()], ["---"] * (len(IMAGES) + 1)]
    rows += [[title, *TABLE[release].values()] for release, title in SERVERS.items()]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def rewritten(text: str) -> str:
    """The guide with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


if __name__ == "__main__":
    GUIDE.write_text(rewritten(GUIDE.read_text()))
