"""Slurm's prolog and epilog on a node, from outside and from within.

Started as slurmd starts them, from the installation in the node, with job ids of our own; the
image is in the store and the settings have been read before: what a prolog finds on most nodes.
"""

from __future__ import annotations

import json
from typing import Dict, List, Optional

from bench import cluster
from bench.model import Goal, Result, Row, row_of
from bench.place import IMAGE
from bench.processes import REPOSITORY, Command, Samples, in_turn, milliseconds, progress, run

ROUNDS = 60
INNER_ROUNDS = 20
GOAL_MS = 40
NODE = "n1"
FIRST_JOB = 400000
PREFIX = "/opt/hpcwrap"
PYTHON = f"{PREFIX}/bin/python3"
PROLOG = f"{PREFIX}/share/hpcwrap/prolog/slurm.sh"
EPILOG = f"{PREFIX}/share/hpcwrap/epilog/slurm.sh"
WHOLE, WHOLE_EPILOG = "prolog of a job with a container", "its epilog"
MODULES = 8


def measure(rounds: Optional[int]) -> Result:
    """Time them from outside, then step by step from within, then import by import."""
    cluster.state()
    outside = time_outside(rounds or ROUNDS)
    rows = [row_of(milliseconds(outside), name) for name in outside]
    rows.append(Row(f"{WHOLE}, processor", "ms", tuple(outside[WHOLE]["cpu"])))
    rows += time_inside(rounds or INNER_ROUNDS)
    rows += time_imports(rounds or INNER_ROUNDS)
    return Result(
        "Slurm's prolog and epilog of a job on a node, warm",
        rows,
        (Goal(WHOLE, rows[0].median, GOAL_MS, "ms"),),
        (
            "from outside: prolog/slurm.sh and epilog/slurm.sh, from posix_spawn to wait4",
            "`within`: the same prolog in one Python that times its own steps",
            f"`import`: the {MODULES} dearest modules by -X importtime, which makes them dearer",
        ),
    )


def time_outside(rounds: int) -> Samples:
    """In this order in each round, as a prolog comes before its epilog."""
    progress(f"{rounds} prologs and epilogs")
    environment = job_environment("{round}", IMAGE)
    without = job_environment("{round}", None)
    commands = [
        Command(WHOLE, [PROLOG], environment),
        Command(WHOLE_EPILOG, [EPILOG], environment),
        Command("prolog of a job without", [PROLOG], without),
        Command("its epilog, with nothing to do", [EPILOG], without),
        Command("Python alone", [PYTHON, "-I", "-c", "pass"], without),
        Command("Python and the imports", [PYTHON, "-I", "-c", "import hpcwrap.prolog"], without),
    ]
    return in_turn(commands, rounds, turn=False, through=cluster.on(NODE))


def time_inside(rounds: int) -> List[Row]:
    """Rows of the steps, by stages.py in the node's own Python."""
    progress(f"{rounds} prologs, step by step")
    with open(f"{REPOSITORY}/bench/stages.py", encoding="utf-8") as file:
        source = file.read()
    samples: Dict[str, List[float]] = {}
    for number in range(rounds):
        job = with_variables(job_environment(str(number), IMAGE))
        text = run([*cluster.on(NODE), *job, PYTHON, "-I", "-c", source])
        run([*cluster.on(NODE), *job, EPILOG])
        for step, spent in json.loads(text).items():
            samples.setdefault(step, []).append(spent)
    return [Row(f"within: {step}", "ms", tuple(spent)) for step, spent in samples.items()]


def time_imports(rounds: int) -> List[Row]:
    """Rows of the modules that take longest, each without what it imports itself."""
    progress(f"{rounds} imports of hpcwrap.prolog")
    script = f"exec {PYTHON} -I -X importtime -c 'import hpcwrap.prolog' 2>&1"
    samples: Dict[str, List[float]] = {}
    for _ in range(rounds):
        for line in run([*cluster.on(NODE), "sh", "-c", script]).splitlines():
            parts = line.removeprefix("import time:").split("|")
            if parts[0].strip().isdigit():
                samples.setdefault(parts[2].strip(), []).append(int(parts[0]) / 1e3)
    rows = [Row(f"import {name}", "ms", tuple(spent)) for name, spent in samples.items()]
    return sorted(rows, key=lambda row: -row.median)[:MODULES]


def job_environment(number: str, container: Optional[str]) -> Dict[str, str]:
    """What slurmd gives to a prolog (slurm.conf(5)), with or without the SPANK plugin's word."""
    variables = {
        "SLURM_CLUSTER_NAME": "hpcwrap",
        "SLURM_CONF": "/etc/slurm/slurm.conf",
        "SLURM_JOB_GID": "2001",
        "SLURM_JOB_ID": f"{FIRST_JOB}{number}",
        "SLURM_JOB_PARTITION": "main",
        "SLURM_JOB_UID": "2001",
        "SLURM_JOB_USER": cluster.USER,
        "SLURM_JOB_WORK_DIR": cluster.HOME,
        "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
        "SLURMD_NODENAME": NODE,
    }
    if container:
        variables["SPANK_HPCWRAP_CONTAINER"] = container
    return variables


def with_variables(environment: Dict[str, str]) -> List[str]:
    """What goes before a command to give it nothing but these variables."""
    return ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
