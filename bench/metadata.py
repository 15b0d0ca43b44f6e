"""32 ranks import numpy: from the image ÷ from the same tree unpacked on the local disk."""

from __future__ import annotations

from typing import List, Optional

from bench import inside
from bench.inside import INSIDE, WITHOUT
from bench.model import Result

ROUNDS = 8
RANKS = ("--ntasks=32", "--overcommit")
IMAGE = "mpirun-12"
PYTHON = ["/usr/bin/python3", "-c", "import numpy"]
WARM, COLD = "warm", "cold"


def measure(rounds: Optional[int]) -> Result:
    """Steps in turn, with the files in memory and with none."""
    inside.offer(IMAGE)
    tree = inside.unpack(IMAGE)
    try:
        with inside.jobs(IMAGE) as jobs:
            commands = {WITHOUT: from_tree(tree), INSIDE: PYTHON}
            measures = {
                f"{state}, {where}": lambda state=state, where=where: storm(
                    state, jobs[where], commands[where]
                )
                for state in (WARM, COLD)
                for where in (WITHOUT, INSIDE)
            }
            rows = inside.rows_of(inside.in_turn(rounds or ROUNDS, measures), "s")
    finally:
        inside.clean()
    return Result(
        "srun of 32 ranks that import numpy, on one node",
        rows,
        [inside.speed_goal(*pair, time=True, least=1) for pair in inside.pairs(rows)],
        (
            "without: the image's tree unpacked on the local disk, by unshare --root for each rank",
            "cold: all caches of the kernel dropped before",
        ),
        inside.baselines(rows),
    )


def from_tree(tree: str) -> List[str]:
    """The same Python at the same paths, without a container."""
    return ["unshare", "--map-root-user", f"--root={tree}", *PYTHON]


def storm(state: str, job: str, command: List[str]) -> float:
    """One step, in s; the first of a warm one is thrown away."""
    if state == COLD:
        inside.drop_caches()
    else:
        inside.step(job, command)
    return inside.seconds(job, command, *RANKS)
