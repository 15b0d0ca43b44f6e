"""The Slurm cluster of tools/cluster as the tests use it."""

import os
import re
import time
from typing import NamedTuple

import pytest
from cluster_site import NODES, REPOSITORY, SETTINGS, SLURM, TOOLS, ClusterSite, Ran

__all__ = [
    "NODES",
    "RELEASE",
    "REPOSITORY",
    "SETTINGS",
    "TOOLS",
    "Job",
    "Ran",
    "Site",
    "has_pmix",
    "own_packages",
]

RELEASE = os.environ.get(SLURM) or "22.05"
"""The Slurm that this run is for."""

own_packages = pytest.mark.skipif(
    RELEASE != "22.05", reason="about libraries of Debian 12, which these nodes have not"
)


class Site(ClusterSite):
    """The cluster of the Slurm tests."""

    def __init__(self, state: str) -> None:
        super().__init__(state, "slurm")

    def batch(self, script: str, *options: str) -> "Job":
        """Submit a script as alice and wait for its end (quicker than sbatch --wait)."""
        output = f"out-{time.monotonic_ns()}"
        ran = self.submit(script, f"--output={output}", *options)
        job_id = ran.stdout.strip()
        if not job_id:
            return Job("", ran.code, "", ran.stderr)
        assert self.eventually(lambda: self.has_ended(job_id), 120), self.job(job_id)
        code = re.search(r" ExitCode=(\d+):", self.job(job_id))
        assert code
        return Job(job_id, int(code.group(1)), self.alice("cat", output).stdout, ran.stderr)

    def submit(self, script: str, *options: str) -> Ran:
        """Submit a script as alice; stdout is the job's id."""
        return self.alice("sbatch", "--parsable", *options, stdin=script)

    def has_ended(self, job_id: str) -> bool:
        """True when the job, or each of an array, is in none of the states before its end."""
        states = re.findall(r"JobState=(\w+)", self.job(job_id))
        return bool(states) and {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}.isdisjoint(
            states
        )

    def job(self, job_id: str) -> str:
        """Slurm's view of a job."""
        return self.root("ctl", "scontrol", "show", "job", job_id).stdout

    def node_states(self) -> "set[str]":
        """States of all nodes, short words."""
        return set(self.root("ctl", "sinfo", "-h", "-N", "-o", "%t").stdout.split())


def has_pmix(site: Site) -> bool:
    """True when this Slurm serves PMIx."""
    listed = site.alice("srun", "--mpi=list")
    return "pmix" in listed.stdout + listed.stderr


class Job(NamedTuple):
    """A batch job that has ended; without an id, one that was refused."""

    id: str
    code: int
    output: str
    stderr: str
