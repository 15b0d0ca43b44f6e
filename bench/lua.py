"""One submission in job_submit.lua, with few environments and with many: it must not grow.

slurmctld holds locks while it runs.  The table is the one that `hpcwrap setup slurm --table`
writes, from a configuration made up here; the time is processor time, as Lua counts it.
"""

from __future__ import annotations

import os
import tempfile
from typing import Dict, List, Optional, Tuple

from bench.model import Goal, Result, Row
from bench.processes import REPOSITORY, progress, run
from hpcwrap import paths
from hpcwrap.config import Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.schedulers.slurm_table import Accounts, render_table

ROUNDS = 20
CALLS = 500
FEW, MANY = 10, 10_000
MORE = 1.25
MOST_US = 50
LUA = "lua5.1"
CALLS_SCRIPT = os.path.join(REPOSITORY, "bench", "lua_calls.lua")


def measure(rounds: Optional[int]) -> Result:
    """Time submissions with both tables in turn, in one Lua."""
    progress(f"writing tables of {FEW} and {MANY} environments")
    with tempfile.TemporaryDirectory(prefix="hpcwrap-bench-") as directory:
        tables = [write_table(directory, count) for count in (FEW, MANY)]
        sizes = [os.path.getsize(table) for table in tables]
        progress(f"submitting, {CALLS} times in each round")
        filter_path = paths.data("submit", "slurm.lua")
        argv = [LUA, CALLS_SCRIPT, filter_path, str(CALLS), str(rounds or ROUNDS), *tables]
        samples = parse(run(argv))
    rows, baselines, goals = [], {}, []
    for case in dict.fromkeys(case for _, case in samples):
        few, many = (
            Row(f"{case}, {count}", "µs", tuple(samples[number, case]))
            for number, count in ((1, FEW), (2, MANY))
        )
        rows += [few, many]
        baselines.update({row.what: few.what for row in (few, many)})
        goals.append(Goal(f"{case}, {MANY} ÷ {FEW}", many.over(few), MORE))
        goals.append(Goal(f"{case}, {MANY}", many.median, MOST_US, "µs"))
    return Result(
        "one submission in job_submit.lua by what it asks for and the number of environments",
        rows,
        goals,
        (
            f"processor time in {LUA}; the mean of {CALLS} calls is one sample",
            f"the tables have {sizes[0]} and {sizes[1]} bytes",
        ),
        baselines,
    )


def write_table(directory: str, count: int) -> str:
    """Write the table of a site with so many environments, half of them for a group."""
    known = {
        f"env-{number}": Environment(
            name=f"env-{number}",
            image=f"registry:5000/env-{number}:latest",
            description="",
            mounts=(),
            variables=(),
            workdir=None,
            users=(),
            groups=("research",) if number % 2 else (),
            origin="",
        )
        for number in range(count)
    }
    config = Config("/etc/hpcwrap/hpcwrap.yaml", Settings(), {}, known, {}, {}, {})
    digests = dict.fromkeys(known, "sha256:" + "d" * 64)
    accounts = Accounts(uids={}, members={"research": range(2000, 2100)})
    path = os.path.join(directory, f"{count}.lua")
    with open(path, "w", encoding="ascii") as file:
        file.write(render_table(config, digests, accounts, clear_container=False))
    return path


def parse(text: str) -> Dict[Tuple[int, str], List[float]]:
    """(Number of the table from 1, case) → samples in µs."""
    samples: Dict[Tuple[int, str], List[float]] = {}
    for line in text.splitlines():
        number, case, spent = line.split("\t")
        samples.setdefault((int(number), case), []).append(float(spent) / 1e3)
    return samples
