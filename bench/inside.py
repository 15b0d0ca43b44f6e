"""The same command in two jobs of the cluster, one in a container and one without, in turn."""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from bench import cluster
from bench.model import Goal, Row
from bench.processes import REPOSITORY, BenchError, progress, run

WITHOUT, INSIDE = "without", "in a container"
NODE = "n1"
LEAST = 0.97
STORE = "/shared/hpcwrap/store/images"
ENVIRONMENTS = "/shared/hpcwrap/etc/environments.d"
DIRECTORY = "/shared/bench"
"""Of the cluster, on this machine's disk; nodes see it, containers do not."""

HOME = f"{cluster.HOME}/bench"
"""Likewise, and containers see it, too."""

Samples = Dict[str, List[float]]


@contextlib.contextmanager
def jobs(image: str, *size: str) -> Iterator[Dict[str, str]]:
    """Two jobs of one size: where → job id; on one node unless `size` says how many."""
    size = size or ("--nodes=1", f"--nodelist={NODE}", "--ntasks=2")
    found = {
        WITHOUT: cluster.allocate(*size),
        INSIDE: cluster.allocate(*size, f"--container={image}"),
    }
    try:
        yield found
    finally:
        cluster.cancel(list(found.values()))


def in_turn(rounds: int, measures: Mapping[str, Callable[[], float]]) -> Samples:
    """Call all in each round, now in this order and now in the other; name → samples."""
    samples: Samples = {name: [] for name in measures}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for name in list(measures)[:: 1 if number % 2 else -1]:
            samples[name].append(measures[name]())
    return samples


def step(job: str, command: Sequence[str], *options: str) -> str:
    """Run a step of a job; its output with its messages.  Raises BenchError."""
    srun = ["srun", "--quiet", f"--jobid={job}", *(options or ("--ntasks=1",)), *command]
    return run([*cluster.as_user(), "sh", "-c", '"$@" 2>&1', "sh", *srun])


def seconds(job: str, command: Sequence[str], *options: str) -> float:
    """How long a step takes, from the start of srun to its end."""
    script = 'TIMEFORMAT=%R; time "$@" >/dev/null 2>&1'
    srun = ["srun", f"--jobid={job}", *options, *command]
    text = run([*cluster.as_user(), "bash", "-c", f"{{ {script}; }} 2>&1", "bash", *srun])
    return float(text.split()[-1])


def number(text: str, pattern: str) -> float:
    """The number that a program printed.  Raises BenchError when it did not."""
    found = re.search(pattern, text)
    if not found:
        raise BenchError(f"cannot find {pattern} in: {text[:200]}")
    return float(found.group(1))


def offer(image: str) -> None:
    """Have an image of tools/image as an environment of the cluster, and in its store."""
    environment = {**os.environ, "HPCWRAP_CLUSTER": cluster.state()}
    run([os.path.join(REPOSITORY, "tools", "image"), "push", image], env=environment)
    line = f"image: registry:5000/{image}:latest"
    sh(f"echo '{line}' >{ENVIRONMENTS}/{image}.yaml && hpcwrap setup slurm --table")
    sh(f"hpcwrap pull --quiet {image}")


def unpack(image: str) -> str:
    """The image's tree on the local disk, as the nodes see it."""
    tree = f"{DIRECTORY}/{image}"
    sh(f"mkdir -p {DIRECTORY} && rm -rf {tree}")
    listed = json.loads(run([*cluster.on("ctl"), "hpcwrap", "images", "--json"]))
    digest = next(each["digest"] for each in listed if image in each["environments"])
    sh(f"unsquashfs -no-progress -no-xattrs -dest {tree} {STORE}/{digest.partition(':')[2]}.sqsh")
    return tree


def make_home() -> None:
    """An empty directory in the user's home."""
    run([*cluster.as_user(), "sh", "-c", f"rm -rf {HOME} && mkdir {HOME}"])


def clean() -> None:
    """Remove what was put into the cluster, which may be a borrowed one."""
    sh(f"rm -rf {DIRECTORY} {HOME}")


def sh(script: str) -> None:
    """Run a line of shell as root on the submit host."""
    run([*cluster.on("ctl"), "sh", "-c", script])


def drop_caches() -> None:
    """Let the kernel forget all files: the next look at them is cold."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3\n")


def rows_of(samples: Samples, unit: str) -> List[Row]:
    """A row for each name."""
    return [Row(name, unit, tuple(values)) for name, values in samples.items()]


def pairs(rows: Sequence[Row]) -> List[Tuple[Row, Row]]:
    """Rows two by two: without, in a container."""
    return list(zip(rows[::2], rows[1::2]))


def speed_goal(without: Row, inside: Row, *, time: bool = False, least: float = LEAST) -> Goal:
    """Inside has to be nearly as fast; `time` is for rows whose less is more."""
    ratio = inside.over(without)
    what = f"{without.what.rpartition(',')[0]}: speed, inside ÷ without"
    return Goal(what, 1 / ratio if time else ratio, least, at_least=True)


def baselines(rows: Sequence[Row]) -> Optional[Dict[str, str]]:
    """Each pair's ratio is to its own first."""
    return {row.what: pair[0].what for pair in pairs(rows) for row in pair}
