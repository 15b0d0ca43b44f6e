"""Measure hpcwrap: `make bench`, or bench/run.py [NAME…] [--all] [--rounds N] [--json FILE]."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from typing import Dict, List, Optional

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from rich.console import Console

from bench import cluster, place, report
from bench.model import Result
from bench.processes import REPOSITORY, BenchError

# In this order: first what needs nothing, then the registry, then the cluster.
BENCHMARKS = {
    "lua": "one call of job_submit.lua at 10 and at 10 000 environments",
    "enter": "the start of a rank: bare, hpcwrap-enter, ch-run, bwrap",
    "start": "building one container, operation by operation",
    "pull": "registry to squashfs, against podman, ch-image, apptainer and the processors alone",
    "prolog": "Slurm's prolog and epilog on a node, and what their time goes into",
    "srun": "srun of 1 and of 32 ranks in a container and without",
    "filter": "sbatch with job_submit.lua in slurmctld and without",
    "nodes": "one image on eight nodes at once, and what the registry is asked for",
    "mpi": "MPI ping-pong within a node and between two, in a container and without",
    "stream": "memory bandwidth of one process, in a container and without",
    "metadata": "32 ranks import numpy, from the image and from the same tree on the local disk",
    "files": "dd of a file of the disk and of one of the image, in a container and without",
    "pull-large": "the same with 3 GiB in 20 layers and 100 000 files; only when it is named",
}
USUAL = [name for name in BENCHMARKS if name != "pull-large"]  # which takes a quarter of an hour


def main() -> int:
    """Measure, print, write; 1 when a benchmark could not be run."""
    options = make_parser().parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/run.py: containers and a cluster are made: run this as root")
    # So that a terminated run takes its cluster down too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with place.held():
            return measure_and_show(options)
    except BenchError as error:
        sys.exit(f"bench/run.py: {error}")


def measure_and_show(options: argparse.Namespace) -> int:
    """Measure what was asked for, print each result as it comes, write them all."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    results: Dict[str, Result] = {}
    failed = measure_all(wanted(options), options.rounds, console, results)
    path = options.json or time.strftime(f"{REPOSITORY}/bench/results/%Y%m%d-%H%M%S.json")
    report.write(path, report.document(results))
    console.print(f"All samples are in {os.path.relpath(path)}")
    missed = [name for name, result in results.items() if not all(g.met for g in result.goals)]
    if missed:
        console.print(f"Goals were missed in: {', '.join(missed)}")
    return 1 if failed else 0


def wanted(options: argparse.Namespace) -> List[str]:
    """The names of the benchmarks to run."""
    return list(BENCHMARKS) if options.all else options.names or USUAL


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = "\n".join(f"  {name:10} {text}" for name, text in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description="Measure hpcwrap beside nothing at all and beside its peers.",
        epilog=f"benchmarks:\n{lines}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *BENCHMARKS])
    parser.add_argument("--all", action="store_true", help="all of them, pull-large too")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of each one's own number")
    parser.add_argument("--json", metavar="FILE", help="default: bench/results/TIME.json")
    return parser


def measure_all(
    names: List[str], rounds: Optional[int], console: Console, results: Dict[str, Result]
) -> List[str]:
    """Run the benchmarks one after the other; names of those that could not be run."""
    failed = []
    try:
        for name in names:
            print(f"{name}: {BENCHMARKS[name]}", file=sys.stderr, flush=True)
            try:
                module = importlib.import_module(f"bench.{name.replace('-', '_')}")
                results[name] = module.measure(rounds)
                report.show(console, name, results[name])
            except BenchError as error:
                print(f"bench/run.py: {name} could not be measured: {error}", file=sys.stderr)
                failed.append(name)
    finally:
        cluster.down()
    return failed


if __name__ == "__main__":
    sys.exit(main())
