"""32 ranks import numpy: from the image ÷ from the same tree unpacked on the local disk."""

from __future__ import annotations

from typing import List, Optional

from bench import cluster, inside
from bench.inside import INSIDE, WITHOUT
from bench.model import Result
from bench.processes import run

ROUNDS = 8
RANKS = ("--ntasks=32", "--overcommit")
IMAGE = "mpirun-12"
PYTHON = ["/usr/bin/python3", "-c", "import numpy"]
WARM, COLD = "warm", "cold"
KERNELS = ("proc", "sys", "dev")


def measure(rounds: Optional[int]) -> Result:
    """Steps in turn, with the files in memory and with none."""
    inside.offer(IMAGE)
    tree = inside.unpack(IMAGE)
    furnish(tree)
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
        strip(tree)
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


def furnish(tree: str) -> None:
    """Give the tree what a container has: OpenBLAS starts a thread less where it finds no /sys."""
    for name in KERNELS:
        on_node("mount", "--rbind", "--make-rslave", f"/{name}", f"{tree}/{name}")


def strip(tree: str) -> None:
    """Take it away again, before the tree is removed."""
    for name in KERNELS:
        on_node("umount", "--recursive", f"{tree}/{name}")


def on_node(*command: str) -> None:
    """Run a command as root on the node."""
    run([*cluster.on(inside.NODE), *command])


def storm(state: str, job: str, command: List[str]) -> float:
    """One step, in s; the first of a warm one is thrown away."""
    if state == COLD:
        inside.drop_caches()
    else:
        inside.step(job, command)
    return inside.seconds(job, command, *RANKS)
