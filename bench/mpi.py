"""MPI ping-pong between two ranks of one node, in a container ÷ without.

The same program, compiled in the image by its Open MPI and on the host by the host's.  The ranks
talk through shared memory and by copying from process to process (CMA), which works only between
processes of one user namespace: this is where a container for each rank shows.
"""

from __future__ import annotations

import os
import shutil
from typing import Dict, List, Optional, Tuple

from bench import cluster
from bench.model import Goal, Result, Row
from bench.place import IMAGE
from bench.processes import REPOSITORY, BenchError, progress, run

ROUNDS = 24
LEAST = 0.97
SMALL, LARGE = 8, 1 << 20
WITHOUT, INSIDE = "without", "in a container"
LATENCY, BANDWIDTH = "8 B one way", "1 MiB bandwidth"
SOURCE = os.path.join(REPOSITORY, "tools", "imagelib", "programs", "mpi-pingpong.c")

Measured = Dict[Tuple[str, str], List[float]]


def measure(rounds: Optional[int]) -> Result:
    """Run it in turn in two jobs of one node."""
    samples = time_all(rounds or ROUNDS)
    rows = [
        Row(f"{what}, {where}", unit, tuple(samples[what, where]))
        for what, unit in ((BANDWIDTH, "MB/s"), (LATENCY, "µs"))
        for where in (WITHOUT, INSIDE)
    ]
    bandwidth, latency = rows[:2], rows[2:]
    return Result(
        "MPI ping-pong of two ranks on one node, by srun and PMIx",
        rows,
        (
            compare("bandwidth, inside ÷ without", *(max(row.samples) for row in bandwidth)),
            compare("speed at 8 B, inside ÷ without", *(1 / min(row.samples) for row in latency)),
        ),
        (
            "each sample is the best round of one run of mpi-pingpong; the goals are for the best",
            "of all runs: on a virtual machine the two processors are now near, now far",
        ),
        {row.what: pair[0].what for pair in (bandwidth, latency) for row in pair},
    )


def compare(what: str, without: float, inside: float) -> Goal:
    """What is to be nearly the same in both, the more the better."""
    return Goal(what, inside / without, LEAST, at_least=True)


def time_all(rounds: int) -> Measured:
    """(What, where) → samples."""
    directory = os.path.join(cluster.state(), "shared", "bench")
    compile_on_host(directory)
    size = ["--nodes=1", "--ntasks=2"]
    jobs = [(WITHOUT, cluster.allocate(*size), "/shared/bench/mpi-pingpong")]
    jobs.append((INSIDE, cluster.allocate(*size, f"--container={IMAGE}"), "mpi-pingpong"))
    samples: Measured = {}
    try:
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for where, job, program in jobs if number % 2 else jobs[::-1]:
                for what, value in run_once(job, program).items():
                    samples.setdefault((what, where), []).append(value)
    finally:
        cluster.cancel([job for _, job, _ in jobs])
        shutil.rmtree(directory)
    return samples


def compile_on_host(directory: str) -> None:
    """Compile the demo image's program with the host's Open MPI, where the nodes see it."""
    os.makedirs(directory, exist_ok=True)
    run(["mpicc", "-O2", "-s", "-o", f"{directory}/mpi-pingpong", SOURCE])


def run_once(job: str, program: str) -> Dict[str, float]:
    """One run: µs one way of the smallest message, MB/s of the large one.

    The time comes from the speed, which is printed with more digits.
    """
    srun = ["srun", f"--jobid={job}", "--mpi=pmix", "--ntasks=2", program]
    table: Dict[int, float] = {}
    for line in run([*cluster.as_user(), *srun]).splitlines():
        words = line.split()
        if words and words[0].isdigit():
            table[int(words[0])] = float(words[2])
    if SMALL not in table or LARGE not in table:
        raise BenchError(f"{program} printed something else than expected")
    return {LATENCY: SMALL / table[SMALL], BANDWIDTH: table[LARGE]}
