"""Memory bandwidth of one process, in a container ÷ without: one source, compiled on both sides."""

from __future__ import annotations

import os
from typing import Optional

from bench import cluster, inside
from bench.inside import INSIDE
from bench.model import Result
from bench.place import IMAGE
from bench.processes import REPOSITORY, run

ROUNDS = 16
SOURCE = os.path.join(REPOSITORY, "bench", "programs", "stream.c")


def measure(rounds: Optional[int]) -> Result:
    """Run the triad in turn in two jobs of one node."""
    cluster.state()
    inside.make_home()
    try:
        with inside.jobs(IMAGE) as jobs:
            programs = {where: compile_in(job, where) for where, job in jobs.items()}
            measures = {
                f"triad, {where}": lambda job=job, where=where: triad(job, programs[where])
                for where, job in jobs.items()
            }
            rows = inside.rows_of(inside.in_turn(rounds or ROUNDS, measures), "MB/s")
    finally:
        inside.clean()
    return Result(
        "memory bandwidth of one process: a[i] = b[i] + s * c[i] over three times 128 MiB",
        rows,
        [inside.speed_goal(*rows)],
        ("each sample is the best of 20 passes",),
    )


def compile_in(job: str, where: str) -> str:
    """Compile with the compiler of the host or of the image."""
    program = f"{inside.HOME}/stream-{'inside' if where == INSIDE else 'without'}"
    with open(SOURCE, encoding="utf-8") as file:
        source = file.read()
    script = f"cat >{program}.c <<'END'\n{source}END\ncc -O2 -o {program} {program}.c"
    run([*cluster.as_user(), "srun", f"--jobid={job}", "--ntasks=1", "sh", "-c", script])
    return program


def triad(job: str, program: str) -> float:
    """One run: MB/s."""
    return inside.number(inside.step(job, [program]), r"triad ([\d.]+)")
