"""Slurm's own way into a running job: a step beside those that it has (srun(1), --overlap).

Such a step is in the job's cgroup, counts as the job's, and ends with it; only the job's user may
start one, and our plugin brings it into the job's container like any other.
"""

from __future__ import annotations

import os
from typing import Dict, List, NamedTuple, Optional, Tuple

from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.run import CommandError
from hpcwrap.schedulers import slurm, slurm_hosts
from hpcwrap.schedulers.states import ask, find_command, named

BESIDE = ("--overlap", "--mem=0", "--nodes=1", "--ntasks=1", "--mpi=none")
"""Nothing is taken from the other steps; all memory of the job on that node may be used."""

KEPT = "SLURM_CONF"
"""The one variable of Slurm's that does not speak of another job."""

UNCONFIGURED = "Could not establish a configuration", "Unable to process configuration file"
"""What a command of Slurm's ends with where there is no configuration, or none that it takes."""

FIELDS = (("JobID", 12), ("UserID", 12), ("State", 16), ("NodeList", 4096), ("admin_comment", 1024))
"""What squeue(1) is asked for, with widths; none of it is text of the job's user."""


class Running(NamedTuple):
    """A job that has not ended; `container` is empty when Slurm knows of none."""

    id: str
    uid: str
    state: str
    nodes: Tuple[str, ...]
    container: str


def read_job(job_id: str, settings: Settings) -> Running:
    """Ask Slurm for one job, ``7`` or ``5_2``; of an array, for the first that runs.

    Raises UserError when there is none, SiteError when Slurm does not answer.
    """
    fields = ",".join(f"{name}:{width}" for name, width in FIELDS)
    words = ["--noheader", "--all", f"--jobs={job_id}", f"--Format={fields}"]
    try:
        text = ask("squeue", words, settings.slurm_commands).decode(errors="surrogateescape")
    except CommandError as error:
        if "Invalid job id" not in error.stderr:
            raise refused(job_id, error) from error
        text = ""
    jobs = [parse_job(line) for line in text.splitlines() if line.strip()]
    if not jobs:
        reason = f"cannot enter the job {job_id}: no such job waits or runs"
        raise UserError(reason, "see `hpcwrap status`")
    return next((job for job in jobs if job.state == "RUNNING"), jobs[0])


def refused(job_id: str, error: CommandError) -> SiteError:
    """What is told of an error of squeue: that this host is outside of the cluster, or its own."""
    if any(text in error.stderr for text in UNCONFIGURED):
        return SiteError(
            f"cannot ask Slurm for the job {job_id}: this host has no slurm.conf that it can read",
            f"say this on a submit host or on a node of the job, or name the file by ${KEPT}",
        )
    return SiteError(f"cannot ask Slurm for the job {job_id}: {error.message}")


def parse_job(line: str) -> Running:
    """Read a line of squeue's, whose fields have their widths."""
    values = []
    for _, width in FIELDS:
        values.append(line[:width].strip())
        line = line[width:]
    job_id, uid, state, nodes, comment = values
    container = named(slurm.comment_request(comment))
    return Running(job_id, uid, state, slurm_hosts.expand(nodes), container)


def step(
    job: Running, node: str, command: List[str], settings: Settings, *, terminal: bool
) -> List[str]:
    """The command line that runs a command beside the job's steps, on one of its nodes.

    Raises SiteError where srun is not.
    """
    srun = find_command("srun", settings.slurm_commands)
    if srun is None:
        raise SiteError("cannot find the command srun", "run this on a submit host or a node")
    bound = slurm.binds(os.environ.get("SLURM_CONF", slurm.CONFIGURATION))
    return [
        *(srun, f"--jobid={job.id}", f"--nodelist={node}", *BESIDE),
        *([slurm.UNBOUND] if bound else []),
        *(["--pty"] if terminal else []),
        *command,
    ]


def clean(environ: Dict[str, str]) -> Dict[str, str]:
    """An environment without what speaks of the job that we are in ourselves, if any."""
    return {
        name: value
        for name, value in environ.items()
        if name == KEPT or not name.startswith(("SLURM_", "SLURMD_", "PMIX_", "PMI_"))
    }


def own_node(nodes: Tuple[str, ...]) -> Optional[str]:
    """This host, if it is one of the nodes."""
    host = os.environ.get("SLURMD_NODENAME") or os.uname().nodename.split(".")[0]
    return host if host in nodes else None
