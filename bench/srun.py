"""srun of /bin/true in a container ÷ without: in jobs that are there, and as jobs of their own.

Two jobs on one node, one with a container and one without, take steps in turn.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from bench import cluster
from bench.model import Goal, Result, Row, row_of
from bench.place import IMAGE
from bench.processes import Command, Samples, in_turn, milliseconds, progress

ROUNDS = 40
JOB_ROUNDS = 20
RANKS = (1, 32)
LIMIT = 1.05
NODE = "n1"
WITHOUT, INSIDE = "without", "in a container"


def measure(rounds: Optional[int]) -> Result:
    """Time steps of 1 and of 32 ranks, then jobs of one rank."""
    cluster.state()
    samples = {**time_steps(rounds or ROUNDS), **time_jobs(rounds or JOB_ROUNDS)}
    rows: List[Row] = []
    goals = []
    baselines = {}
    for what in (*(step_name(ranks) for ranks in RANKS), job_name()):
        without, inside = (
            row_of(milliseconds(samples), f"{what}, {where}") for where in (WITHOUT, INSIDE)
        )
        rows += [without, inside]
        baselines.update({row.what: without.what for row in (without, inside)})
        if what != job_name():
            goals.append(Goal(f"{what}, inside ÷ without", inside.over(without), LIMIT))
    return Result(
        "srun /bin/true on one node, from its start to its end",
        rows,
        goals,
        (
            "steps: in turn in two jobs of one node; the prolog is over then",
            "jobs of their own: scheduling, prolog with a warm store, step; the epilog comes after",
        ),
        baselines,
    )


def time_steps(rounds: int) -> Samples:
    """Steps in two jobs that are there."""
    size = ["--nodes=1", f"--nodelist={NODE}", "--ntasks=4"]
    jobs = [(WITHOUT, cluster.allocate(*size))]
    jobs.append((INSIDE, cluster.allocate(*size, f"--container={IMAGE}")))
    try:
        progress(f"{rounds} rounds of steps")
        commands = [step(ranks, *job) for ranks in RANKS for job in jobs]
        return in_turn(commands, rounds, warm_up=2, through=cluster.as_user())
    finally:
        cluster.cancel([number for _, number in jobs])


def step(ranks: int, where: str, job: str) -> Command:
    """A step of so many ranks in a job; more ranks than cores are allowed."""
    argv = ["/usr/bin/srun", f"--jobid={job}", f"--ntasks={ranks}", "--overcommit", "/bin/true"]
    return Command(f"{step_name(ranks)}, {where}", argv, None, cluster.HOME)


def time_jobs(rounds: int) -> Samples:
    """Jobs of one rank, each with its prolog."""
    progress(f"{rounds} rounds of jobs")
    ways: Tuple[Tuple[str, List[str]], ...] = (
        (WITHOUT, []),
        (INSIDE, [f"--container={IMAGE}"]),
    )
    srun = ["/usr/bin/srun", "--nodes=1", f"--nodelist={NODE}", "--ntasks=1"]
    commands = [
        Command(f"{job_name()}, {where}", [*srun, *option, "/bin/true"], None, cluster.HOME)
        for where, option in ways
    ]
    return in_turn(commands, rounds, warm_up=2, through=cluster.as_user())


def step_name(ranks: int) -> str:
    """What a step is called in the table."""
    return f"step of {ranks} rank{'s' if ranks > 1 else ''}"


def job_name() -> str:
    """What a job of its own is called in the table."""
    return "job of 1 rank"
