"""The start of a rank: /bin/true as an ordinary user, bare, in our container, and in others'.

The container is there already, as it is for every rank of a job: the prolog made it.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional

from bench import place
from bench.model import Goal, Result, Row, row_of
from bench.processes import BenchError, Command, in_turn, milliseconds, progress
from hpcwrap import paths

ROUNDS = 400
MORE_MS = 0.5
BARE, OURS, CH_RUN, BWRAP = "bare", "hpcwrap-enter", "ch-run, directory", "bwrap, directory"

# The mounts that our container has, in bwrap's words; ch-run has them by itself.
BWRAP_MOUNTS = ("/proc", "/sys", "/tmp", "/var/tmp")


def measure(rounds: Optional[int]) -> Result:
    """Time all of them in turn, as a user without privileges."""
    place.get_unpacked()
    progress(f"starting /bin/true {rounds or ROUNDS} times in each")
    samples = place.apart(lambda: time_all(rounds or ROUNDS))
    wall, cpu = milliseconds(samples), milliseconds(samples, "cpu")
    rows = [row_of(wall, name) for name in wall]
    more = rows[1].more_than(rows[0])
    return Result(
        "starting /bin/true as an ordinary user, in a container that is there",
        [*rows, *(Row(f"{name}, processor", "ms", tuple(cpu[name])) for name in cpu)],
        [Goal("hpcwrap-enter more than bare", more, MORE_MS, "ms")],
        (
            "from posix_spawn (a vfork) to wait4 in one process; each round in another order",
            "ch-run and bwrap make a container for each command; hpcwrap-enter joins the job's",
        ),
        {f"{name}, processor": f"{BARE}, processor" for name in cpu},
    )


def time_all(rounds: int) -> Dict[str, Any]:
    """In a mount namespace of our own: make our container, time, drop it."""
    job = place.prepare("1")
    directory = paths.JobPaths(job.id).directory
    try:
        return in_turn(commands(directory), rounds, uid=place.USER.uid)
    finally:
        place.end_job(job)


def commands(directory: str) -> List[Command]:
    """What is compared: our container in the job's directory, the others' in an unpacked image."""
    root, environment = place.get_unpacked(), place.login_environment()
    binds = [word for path in BWRAP_MOUNTS for word in ("--bind", path, path)]
    words = {
        BARE: ["/bin/true"],
        OURS: [place.copy_enter_program(), directory, "--", "/bin/true"],
        CH_RUN: ["/usr/bin/ch-run", "--no-passwd", root, "--", "/bin/true"],
        BWRAP: [
            "/usr/bin/bwrap",
            "--ro-bind",
            root,
            "/",
            "--dev-bind",
            "/dev",
            "/dev",
            *binds,
            "/bin/true",
        ],
    }
    missing = [argv[0] for argv in words.values() if not os.path.exists(argv[0])]
    if missing:
        raise BenchError(f"cannot find {missing[0]}: run tools/packages bench")
    return [Command(name, argv, environment) for name, argv in words.items()]
