"""MPI ping-pong between two ranks, in a container ÷ without: within a node, and between two.

The same program, compiled in the image by its Open MPI and on the host by the host's.  Within a
node the ranks talk through shared memory and by copying from process to process (CMA), which works
only between processes of one user namespace: this is where a container for each rank shows.
"""

from __future__ import annotations

import os
import shutil
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from bench import cluster
from bench.model import Goal, Result, Row
from bench.place import IMAGE
from bench.processes import REPOSITORY, BenchError, progress, run

ROUNDS = 12
LEAST = 0.97
SMALL, LARGE = 8, 1 << 20
WITHOUT, INSIDE = "without", "in a container"
LATENCY, BANDWIDTH = "8 B one way", "1 MiB bandwidth"
SOURCE = os.path.join(REPOSITORY, "tools", "imagelib", "programs", "mpi-pingpong.c")

Measured = Dict[Tuple[str, str, str], List[float]]


class Way(NamedTuple):
    """One way of Open MPI's for messages: on how many nodes, chosen by which of its parameters."""

    name: str
    nodes: int
    parameters: Mapping[str, str]


SHARED = {"btl": "self,vader", "btl_vader_single_copy_mechanism": "cma"}
WAYS = (
    Way("CMA", 1, SHARED),
    Way("no CMA", 1, {**SHARED, "btl_vader_single_copy_mechanism": "none"}),
    Way("TCP, two nodes", 2, {"btl": "self,tcp"}),
)


def measure(rounds: Optional[int]) -> Result:
    """Run it in turn in two jobs of each size."""
    samples = time_all(rounds or ROUNDS)
    rows: List[Row] = []
    goals: List[Goal] = []
    baselines: Dict[str, str] = {}
    for way in WAYS:
        for what, unit in ((BANDWIDTH, "MB/s"), (LATENCY, "µs")):
            without, inside = (
                Row(f"{way.name}: {what}, {where}", unit, tuple(samples[way.name, what, where]))
                for where in (WITHOUT, INSIDE)
            )
            rows += [without, inside]
            goals.append(compare(way, without, inside))
            baselines.update({row.what: without.what for row in (without, inside)})
    return Result(
        "MPI ping-pong of two ranks, by srun and PMIx",
        rows,
        goals,
        (
            "each sample is the best round of one run of mpi-pingpong; the goals are for the best",
            "of all runs: on a virtual machine the two processors are now near, now far",
        ),
        baselines,
    )


def compare(way: Way, without: Row, inside: Row) -> Goal:
    """What is to be nearly the same in both, the more the better."""
    if without.unit == "MB/s":
        ratio = max(inside.samples) / max(without.samples)
        return Goal(f"{way.name}: bandwidth, inside ÷ without", ratio, LEAST, at_least=True)
    ratio = min(without.samples) / min(inside.samples)
    return Goal(f"{way.name}: speed at 8 B, inside ÷ without", ratio, LEAST, at_least=True)


def time_all(rounds: int) -> Measured:
    """(Way, what, where) → samples."""
    directory = os.path.join(cluster.state(), "shared", "bench")
    compile_on_host(directory)
    samples: Measured = {}
    try:
        for nodes in sorted({way.nodes for way in WAYS}):
            time_ways([way for way in WAYS if way.nodes == nodes], rounds, samples)
    finally:
        shutil.rmtree(directory)
    return samples


def time_ways(ways: List[Way], rounds: int, samples: Measured) -> None:
    """Add the samples of all ways that want so many nodes."""
    size = [f"--nodes={ways[0].nodes}", "--ntasks=2"]
    jobs = [(WITHOUT, cluster.allocate(*size), "/shared/bench/mpi-pingpong")]
    jobs.append((INSIDE, cluster.allocate(*size, f"--container={IMAGE}"), "mpi-pingpong"))
    try:
        for number in range(rounds * len(ways)):
            way = ways[number % len(ways)]
            progress(f"round {number // len(ways) + 1} of {rounds}: {way.name}")
            for where, job, program in jobs if number // len(ways) % 2 else jobs[::-1]:
                for what, value in run_once(job, program, way).items():
                    samples.setdefault((way.name, what, where), []).append(value)
    finally:
        cluster.cancel([job for _, job, _ in jobs])


def compile_on_host(directory: str) -> None:
    """Compile the demo image's program with the host's Open MPI, where the nodes see it."""
    os.makedirs(directory, exist_ok=True)
    run(["mpicc", "-O2", "-s", "-o", f"{directory}/mpi-pingpong", SOURCE])


def run_once(job: str, program: str, way: Way) -> Dict[str, float]:
    """One run: µs one way of the smallest message, MB/s of the large one.

    The time comes from the speed, which is printed with more digits.
    """
    # UCX, which Debian's Open MPI would take, chooses by itself.
    parameters = {"pml": "ob1", **way.parameters}
    variables = [f"OMPI_MCA_{name}={value}" for name, value in parameters.items()]
    srun = ["srun", f"--jobid={job}", "--mpi=pmix", "--ntasks=2", program]
    table: Dict[int, float] = {}
    for line in run([*cluster.as_user(), "env", *variables, *srun]).splitlines():
        words = line.split()
        if words and words[0].isdigit():
            table[int(words[0])] = float(words[2])
    if SMALL not in table or LARGE not in table:
        raise BenchError(f"{program} printed something else than expected")
    return {LATENCY: SMALL / table[SMALL], BANDWIDTH: table[LARGE]}
