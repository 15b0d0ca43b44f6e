"""The suite in Slurm's words."""

from __future__ import annotations

import re
from typing import ClassVar, List, Mapping

from cluster_site import NODES, Ran
from driver import Ask, Driver, Submission

CORES = 8
"""Of each of the cluster's nodes."""

WAITING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}


class Slurm(Driver):
    """sbatch, srun, scancel."""

    NAME = "slurm"
    DIRECTIVE = "#SBATCH --container={}"
    LINE = "--container={}"
    UNKNOWN = r"hpcwrap: there is no environment 'debain-12' \(did you mean debian-12\?\)"
    FORBIDDEN = r"hpcwrap: alice may not use the environment bobs"
    CANNOT: ClassVar[Mapping[str, str]] = {
        "memory": "task/cgroup does it, which the nodes of this suite have not; tests/vm has",
    }

    def forget(self) -> None:
        """Every node of this cluster could run slurmctld, and has a table."""
        for node in ("ctl", *NODES):
            self.need("cluster", "exec", node, "hpcwrap", "setup", "slurm", "--table")

    def submit(self, ask: Ask) -> Submission:
        """By sbatch, the script on its standard input."""
        name = self.new_name()
        suffix = ".%a" if ask.array else ""
        files = [f"--output={name}.out{suffix}", f"--error={name}.err{suffix}"]
        given = self.write_input(name, ask)
        words = [*files, *self.resources(ask), *self.options(ask)]
        words += [f"--input={given}"] if given else []
        script = f"#!/bin/sh\n{self.directives(ask)}{ask.script}"
        return self.sbatch(words, script, ask, name)

    def sbatch(self, words: List[str], script: str, ask: Ask, name: str) -> Submission:
        """The call itself, in the right place and with the right variables."""
        variables = [f"{key}={value}" for key, value in ask.variables]
        where = [f"--chdir=/home/alice/{ask.workdir}"]
        if ask.workdir:
            self.alice("mkdir", "-p", ask.workdir)
            words = [word.replace(name, f"/home/alice/{name}") for word in words]
        command = ["env", *where, *variables, "sbatch", "--parsable", *words]
        ran = self.alice(*command, stdin=script)
        return Submission(ran.stdout.strip(), ran.stderr, name, ask.array)

    def resources(self, ask: Ask) -> List[str]:
        """Nodes, ranks, queue, array."""
        words = [f"--nodes={ask.nodes}", f"--ntasks-per-node={min(ask.ranks, CORES)}"]
        words += [f"--partition={ask.queue}"] if ask.queue else []
        words += [f"--array=1-{ask.array}"] if ask.array else []
        return words

    def has_ended(self, submission: Submission) -> bool:
        """Slurm knows a job for some minutes after its end."""
        text = self.root("ctl", "scontrol", "show", "job", submission.id).stdout
        states = re.findall(r"JobState=(\w+)", text)
        return bool(states) and WAITING.isdisjoint(states)

    def code(self, submission: Submission) -> int:
        """CODE:SIGNAL."""
        text = self.root("ctl", "scontrol", "show", "job", submission.id).stdout
        code, signal = map(int, re.findall(r" ExitCode=(\d+):(\d+)", text)[0])
        return -signal or code

    def cancel(self, submission: Submission) -> None:
        """By scancel."""
        assert self.alice("scancel", submission.id).code == 0

    def interactive(self, container: str, stdin: str) -> Ran:
        """salloc runs a shell on the job's first node."""
        return self.alice("salloc", "--quiet", f"--container={container}", stdin=stdin)

    def each_rank(self, command: str, ranks: int) -> str:
        """srun starts as many as it is told."""
        spread = f"--ntasks={2 * ranks} --ntasks-per-node={ranks}"
        return f"srun --overcommit --mpi=none {spread} /bin/sh -c '{command}'\n"

    def mpirun(self, program: str) -> str:
        """Open MPI's, which calls srun by itself."""
        return f"mpirun --oversubscribe {program}\n"

    def go_round(self, script: str) -> Submission:
        """The environment went after the filter had its table."""
        return self.submit(Ask(script, "fleeting"))

    def trouble(self) -> str:
        """Nodes that are neither idle nor at work, and partitions that are not up."""
        nodes = self.root("ctl", "sinfo", "-h", "-N", "-o", "%N %t %E").stdout.splitlines()
        bad = [line for line in nodes if line.split()[1] not in ("idle", "mix", "alloc", "comp")]
        return "\n".join(bad)


DRIVER = Slurm
