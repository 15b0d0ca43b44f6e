"""The suite in PBS's words."""

from __future__ import annotations

import json
import shlex
from typing import Any, ClassVar, Dict, List

from cluster_site import NODES, Ran
from driver import Ask, Driver, Submission

SIGNALLED = 256
"""pbs_mom adds this to the number of the signal that ended a job's first process."""

SHELL_SIGNALLED = 128
"""That process is a login shell, which says by its own code how the script ended."""


class Pbs(Driver):
    """qsub, qstat, qdel; pbsdsh for ranks."""

    NAME = "pbs"
    DIRECTIVE = "#PBS -l container={}"
    LINE = "-l container={}"
    UNKNOWN = r"qsub: hpcwrap: there is no environment 'debain-12' \(did you mean debian-12\?\)"
    FORBIDDEN = r"qsub: hpcwrap: alice may not use the environment bobs: it is for named users"
    CANNOT: ClassVar[Dict[str, str]] = {
        "stdin": "qsub has no option for a batch job's standard input",
        "workdir": "PBS starts jobs in the home directory; scripts go to $PBS_O_WORKDIR",
    }

    def submit(self, ask: Ask) -> Submission:
        """By qsub, the script on its standard input."""
        name = self.new_name()
        suffix = ".^array_index^" if ask.array else ""
        words = ["-o", f"{name}.out{suffix}", "-e", f"{name}.err{suffix}"]
        words += [*self.resources(ask), *self.options(ask)]
        script = f"#!/bin/sh\n{self.directives(ask)}{ask.script}"
        ran = self.alice("qsub", *words, stdin=script)
        return Submission(ran.stdout.strip(), ran.stderr, name, ask.array)

    def resources(self, ask: Ask) -> List[str]:
        """Nodes, ranks, queue, array, memory, variables."""
        memory = f":mem={ask.memory}mb" if ask.memory else ""
        words = ["-l", f"select={ask.nodes}:ncpus=1:mpiprocs={ask.ranks}{memory}"]
        words += ["-l", "place=scatter"] if ask.nodes > 1 else []
        words += ["-q", ask.queue] if ask.queue else []
        words += ["-J", f"1-{ask.array}"] if ask.array else []
        variables = ",".join(f"{key}={value}" for key, value in ask.variables)
        return [*words, "-v", variables] if variables else words

    def job(self, submission: Submission) -> Dict[str, Any]:
        """What the server says of a job, at its end, too."""
        text = self.root("ctl", "qstat", "-xf", "-F", "json", submission.id).stdout
        jobs: Dict[str, Dict[str, Any]] = json.loads(text).get("Jobs", {})
        return next(iter(jobs.values()), {})

    def has_ended(self, submission: Submission) -> bool:
        """The server keeps jobs in its history; F is also the state of those that were deleted."""
        return self.job(submission).get("job_state") == "F"

    def code(self, submission: Submission) -> int:
        """Exit_status."""
        code = int(self.job(submission)["Exit_status"])
        for more in (SIGNALLED, SHELL_SIGNALLED):
            if more < code < more + 65:
                return more - code
        return code

    def cancel(self, submission: Submission) -> None:
        """By qdel."""
        assert self.alice("qdel", submission.id).code == 0

    def interactive(self, container: str, stdin: str) -> Ran:
        """qsub -I wants a terminal."""
        command = f"qsub -I -l container={container} -S /bin/sh -v PS1="
        return self.alice("script", "-qec", command, "/dev/null", stdin=stdin)

    def each_rank(self, command: str, ranks: int) -> str:
        """pbsdsh starts one on each of the job's slots."""
        return f"pbsdsh -- /bin/sh -c {shlex.quote(command)}\n"

    def mpirun(self, program: str) -> str:
        """Debian's Open MPI, which knows nothing of PBS."""
        return f"mpirun --oversubscribe {program}\n"

    def go_round(self, script: str) -> Submission:
        """The environment went after the hook had its table."""
        return self.submit(Ask(script, "fleeting"))

    def trouble(self) -> str:
        """Nodes that are offline or down, and hooks that PBS has switched off."""
        text = self.root("ctl", "pbsnodes", "-a", "-F", "json").stdout
        nodes: Dict[str, Dict[str, Any]] = json.loads(text)["nodes"]
        bad = [f"{name}: {node['state']}" for name, node in nodes.items() if is_out(node)]
        return "\n".join([*bad, *(name for name in NODES if name not in nodes)])


def is_out(node: Dict[str, Any]) -> bool:
    """Whether a node takes no jobs although it could; one that is full is well."""
    return any(word in node["state"] for word in ("offline", "down", "unknown", "stale"))


DRIVER = Pbs
