"""sbatch with job_submit.lua in slurmctld ÷ without: a thousand submissions by each of two ways.

slurmctld is told by `scontrol reconfigure` to load the filter or to drop it, before each batch of
submissions; the table has 10 000 environments.  Jobs are held, so that nothing but submissions is
measured, and cancelled after each batch.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from statistics import median
from typing import Dict, List, Optional, Tuple

from bench import cluster
from bench.lua import MANY, write_table
from bench.model import Goal, Result, Row
from bench.processes import BenchError, Command, in_turn, milliseconds, progress, run

ROUNDS = 50
BATCH = 20
"""Submissions of each kind in one round: a thousand in fifty.  Few, so that both ways see the same
machine; the first after a change of the plugins, which loads the table, is not counted."""

LIMIT = 1.02
SLURM_CONF, FILTER = "/etc/slurm/slurm.conf", "/etc/slurm/job_submit.lua"
TABLE = "/var/lib/hpcwrap/slurm_table.lua"
WITHOUT, WITH = "without the filter", "with it"
SUBMIT = ("/usr/bin/sbatch", "--hold", "--output=/dev/null", "--wrap=true")
KINDS: Dict[str, Tuple[str, ...]] = {
    "a container": (*SUBMIT, "--container=env-4"),
    "no container": SUBMIT,
}
Samples = Dict[Tuple[str, str], List[float]]


def measure(rounds: Optional[int]) -> Result:
    """Submit by both ways in turn, first the one and then the other."""
    cluster.state()
    samples: Samples = {(kind, way): [] for kind in KINDS for way in (WITHOUT, WITH)}
    progress(f"writing a table of {MANY} environments")
    give_table()
    try:
        progress(f"{rounds or ROUNDS} rounds of {BATCH} submissions of each kind")
        for number in range(rounds or ROUNDS):
            ways = (WITHOUT, WITH) if number % 2 else (WITH, WITHOUT)
            for way in ways:
                submit_batch(way, samples)
    finally:
        switch(WITH)
        run([*cluster.on("ctl"), "hpcwrap", "setup", "slurm", "--table"])
    return result_of(samples)


def give_table() -> None:
    """Put a table of many environments where the filter looks."""
    with tempfile.TemporaryDirectory(prefix="hpcwrap-bench-") as directory:
        path = write_table(directory, MANY)
        with open(path, "rb") as file:
            argv = [*cluster.on("ctl"), "tee", TABLE]
            subprocess.run(argv, stdin=file, stdout=subprocess.DEVNULL, check=True)
    touch = f"touch -d @$(($(stat -c %Y {FILTER}) + 1)) {FILTER}"
    run([*cluster.on("ctl"), "sh", "-c", touch])


def submit_batch(way: str, samples: Samples) -> None:
    """Submit one batch of each kind, in turn; a sample is the median of one kind."""
    switch(way)
    commands = [Command(kind, argv, None, cluster.HOME) for kind, argv in KINDS.items()]
    spent = milliseconds(in_turn(commands, BATCH, warm_up=1, through=cluster.as_user()))
    for kind, times in spent.items():
        samples[kind, way].append(median(times))
    run([*cluster.as_user(), "scancel", f"--user={cluster.USER}"])


def switch(way: str) -> None:
    """Have slurmctld load the filter, or drop it.  Raises BenchError when it did neither."""
    wanted = "lua" if way == WITH else "(null)"
    change = f"s/^#*JobSubmitPlugins=/{'' if way == WITH else '#'}JobSubmitPlugins=/"
    run([*cluster.on("ctl"), "sed", "-i", change, SLURM_CONF])
    run([*cluster.on("ctl"), "scontrol", "reconfigure"])
    shown = run([*cluster.on("ctl"), "scontrol", "show", "config"])
    (line,) = (line for line in shown.splitlines() if line.startswith("JobSubmitPlugins"))
    if line.split()[-1] != wanted:
        raise BenchError(f"slurmctld did not take the change of its plugins: {line}")


def result_of(samples: Samples) -> Result:
    """Rows and goals."""
    rows: List[Row] = []
    goals, baselines = [], {}
    for kind in KINDS:
        without, with_it = (
            Row(f"{kind}, {way}", "ms", tuple(samples[kind, way])) for way in (WITHOUT, WITH)
        )
        rows += [without, with_it]
        baselines.update({row.what: without.what for row in (without, with_it)})
        goals.append(Goal(f"{kind}, with ÷ without", with_it.over(without), LIMIT))
    notes = (
        f"a sample is the median of {BATCH} submissions: {len(rows[0].samples) * BATCH} of each",
        f"{MANY} environments; jobs are held; {os.cpu_count()} processors for all daemons",
    )
    return Result("one sbatch, from its start to its end", rows, goals, notes, baselines)
