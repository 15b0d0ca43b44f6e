"""A cluster of tools/cluster with hpcwrap on it, as tools/site makes one; taken down at the end.

$HPCWRAP_CLUSTER names a cluster that is up with hpcwrap on it already: it is used and left alone.
"""

from __future__ import annotations

import functools
import os
import shutil
from typing import Dict, List, Sequence

from bench.place import BASE, IMAGE
from bench.processes import REPOSITORY, progress, run

OWN_STATE = os.path.join(BASE, "cluster")
USER = "alice"
HOME = f"/home/{USER}"


@functools.cache
def state() -> str:
    """The state directory of the cluster, which is up then, with the demo image in its store."""
    borrowed = os.environ.get("HPCWRAP_CLUSTER")
    if borrowed:
        return borrowed
    progress("bringing up a cluster with hpcwrap on it")
    down()
    _tool("cluster", "up", at=OWN_STATE)
    _tool("image", "push", IMAGE, at=OWN_STATE)
    _tool("site", at=OWN_STATE)
    run([*_on(OWN_STATE, "exec", "ctl"), "hpcwrap", "pull", "--quiet", IMAGE])
    return OWN_STATE


def on(node: str) -> List[str]:
    """What goes before a command that root is to run on a node."""
    return _on(state(), "exec", node)


def as_user() -> List[str]:
    """What goes before a command that an ordinary user is to run on the submit host."""
    return _on(state(), "as", USER)


def allocate(*options: str) -> str:
    """Have slurmctld give us nodes without a command on them; the job's id."""
    argv = [*as_user(), "salloc", "--no-shell", *options]
    run(argv)
    jobs = run([*as_user(), "squeue", "--me", "--noheader", "--sort=-i", "--format=%i"])
    return jobs.split()[0]


def cancel(jobs: Sequence[str]) -> None:
    """End jobs, and wait until their epilogs have run."""
    run([*as_user(), "scancel", *jobs])
    for job in jobs:
        run([*as_user(), "srun", "--dependency=afterany:" + job, "true"])


def down() -> None:
    """Take our own cluster down, if there is one."""
    if os.path.isdir(OWN_STATE) and not os.environ.get("HPCWRAP_CLUSTER"):
        _tool("cluster", "down", at=OWN_STATE)
        shutil.rmtree(OWN_STATE, ignore_errors=True)


def _on(where: str, *words: str) -> List[str]:
    return [os.path.join(REPOSITORY, "tools", "cluster"), "--state", where, *words]


def _tool(name: str, *words: str, at: str) -> None:
    environment: Dict[str, str] = {**os.environ, "HPCWRAP_CLUSTER": at}
    run([os.path.join(REPOSITORY, "tools", name), *words], env=environment)
