"""The suite in LSF's words; the real one is volclava."""

from __future__ import annotations

import itertools
import re
from typing import ClassVar, Dict, List

from cluster_site import NODES, Ran
from driver import Ask, Driver, Submission


class Lsf(Driver):
    """bsub, bjobs, bkill."""

    NAME = "lsf"
    DIRECTIVE = "#BSUB -a {}"
    LINE = "-a {}"
    UNKNOWN = (
        r"hpcwrap: cannot use -a debain-12: there is no environment and no esub of that name "
        r"\(did you mean debian-12\?\)"
    )
    FORBIDDEN = r"hpcwrap: alice may not use the environment bobs"
    CANNOT: ClassVar[Dict[str, str]] = {
        "container in status": "bjobs tells nobody what a job has in its environment"
    }

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self._hosts = itertools.cycle(NODES)

    def submit(self, ask: Ask) -> Submission:
        """By bsub, the script on its standard input."""
        return self.bsub(ask, ())

    def bsub(self, ask: Ask, variables: tuple[str, ...]) -> Submission:
        """The call itself, in the right place and with the right variables."""
        name = self.new_name()
        suffix = ".%I" if ask.array else ""
        home = "/home/alice"
        # -N: the report by mail, which there is none of, and not into the output.
        files = ["-N", "-o", f"{home}/{name}.out{suffix}", "-e", f"{home}/{name}.err{suffix}"]
        words = [*files, *self.resources(ask), *self.options(ask)]
        given = self.write_input(name, ask)
        words += ["-i", given] if given else []
        script = f"#!/bin/sh\n{self.directives(ask)}{ask.script}"
        said = [f"{key}={value}" for key, value in ask.variables]
        if ask.workdir:
            self.alice("mkdir", "-p", ask.workdir)
        where = f"--chdir={home}/{ask.workdir}"
        ran = self.alice("env", where, *said, *variables, "bsub", *words, stdin=script)
        found = re.search(r"Job <(\d+)> is submitted", ran.stdout)
        return Submission(found.group(1) if found else "", ran.stderr, name, ask.array)

    def resources(self, ask: Ask) -> List[str]:
        """Hosts, slots on each, queue, array, memory."""
        words = ["-n", str(ask.nodes * ask.ranks), "-R", f"span[ptile={ask.ranks}]"]
        # sbatchd ends one job at a time, in seconds each: both hosts get their share.
        words += ["-m", next(self._hosts)] if ask.nodes == 1 else []
        words += ["-q", ask.queue] if ask.queue else []
        words += ["-J", f"suite[1-{ask.array}]"] if ask.array else []
        words += ["-M", str(ask.memory)] if ask.memory else []
        return words

    def has_ended(self, submission: Submission) -> bool:
        """Its state is of the last; its files are written before."""
        states = self.states(submission.id)
        return bool(states) and states <= {"DONE", "EXIT"}

    def states(self, job_id: str) -> set[str]:
        """The states of a job, or of all elements of an array."""
        lines = self.alice("bjobs", "-w", job_id).stdout.splitlines()[1:]
        return {line.split()[2] for line in lines if line.startswith(job_id)}

    def code(self, submission: Submission) -> int:
        """What bjobs -l says; a shell tells a signal by 128 + N, and LSF's job file has one."""
        text = re.sub(r"\n {20,}", "", self.alice("bjobs", "-l", submission.id).stdout)
        found = re.search(r"Exited with exit code (\d+)|Exited by signal (\d+)", text)
        if not found:
            return 0
        code, signal = (int(text or 0) for text in found.groups())
        return -signal or (128 - code if 128 < code < 128 + 65 else code)

    def cancel(self, submission: Submission) -> None:
        """By bkill."""
        assert self.alice("bkill", submission.id).code == 0

    def interactive(self, container: str, stdin: str) -> Ran:
        """Bsub -I, with our standard input."""
        return self.alice("bsub", "-I", "-a", container, "/bin/sh", stdin=stdin)

    def each_rank(self, command: str, ranks: int) -> str:
        """One hpcwrap-launch for each host, which starts them there."""
        loop = f"for i in $(seq {ranks}); do /bin/sh -c '\\''{command}'\\'' & done; wait"
        launch = f"for host in $1 $3; do hpcwrap-launch $host '{loop}' </dev/null & done; wait"
        return f"set -- $LSB_MCPU_HOSTS\n{launch}\n"

    def mpirun(self, program: str) -> str:
        """Open MPI's, which does not know volclava: hpcwrap tells it the hosts and their slots."""
        return f"mpirun {program}\n"

    def go_round(self, script: str) -> Submission:
        """The user's LSB_ESUB_METHOD goes before the site's."""
        return self.bsub(Ask(script), ("LSB_ESUB_METHOD=", "HPCWRAP_REQUEST=debain-12"))

    def trouble(self) -> str:
        """Hosts and queues that take no jobs."""
        hosts = self.root("ctl", "bhosts", "-w").stdout.splitlines()[1:]
        queues = self.root("ctl", "bqueues").stdout.splitlines()[1:]
        bad = [line for line in hosts if line.split()[1] != "ok" and not line.startswith("ctl")]
        return "\n".join([*bad, *(line for line in queues if "Open:Active" not in line)])


DRIVER = Lsf
