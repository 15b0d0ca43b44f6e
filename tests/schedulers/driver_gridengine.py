"""The suite in Grid Engine's words."""

from __future__ import annotations

import re
from typing import ClassVar, List, Mapping
from xml.etree import ElementTree

from cluster_site import NODES, Ran
from driver import Ask, Driver, Submission

EACH_SLOT = """\
while read -r host slots rest; do
    for slot in $(seq $slots); do qrsh -inherit -nostdin $host '{}' & done
done <$PE_HOSTFILE
wait
"""

EPILOG = "'mai[n].*hooks.epilog'"
"""A pattern of epilogs under way, which is not found in the command that looks for it."""

SIGNALLED = 128
"""The shepherd adds this to the number of the signal that ended a job (sge_status(5))."""


class GridEngine(Driver):
    """qsub, qrsh, qdel."""

    NAME = "gridengine"
    DIRECTIVE = "#$ -l container={}"
    LINE = "-l container={}"
    DEFAULT_QUEUE = "containers.q"
    UNKNOWN = (
        r"Unable to run job: hpcwrap: there is no environment 'debain-12' "
        r"\(did you mean debian-12\?\)"
    )
    FORBIDDEN = r"Unable to run job: hpcwrap: alice may not use the environment bobs: it is for"
    CANNOT: ClassVar[Mapping[str, str]] = {}

    def submit(self, ask: Ask) -> Submission:
        """By qsub, the script on its standard input."""
        name = self.new_name()
        suffix = ".$TASK_ID" if ask.array else ""
        words = ["-terse", "-o", f"/home/alice/{name}.out{suffix}"]
        words += ["-e", f"/home/alice/{name}.err{suffix}"]
        given = self.write_input(name, ask)
        words += [*self.resources(ask), *self.options(ask), *(["-i", given] if given else [])]
        where = f"/home/alice/{ask.workdir}".rstrip("/")
        if ask.workdir:
            self.alice("mkdir", "-p", ask.workdir)
        script = f"#!/bin/sh\n{self.directives(ask)}{ask.script}"
        ran = self.alice("qsub", "-wd", where, *words, stdin=script)
        found = re.match(r"\d+", ran.stdout) if ran.code == 0 else None
        return Submission(found.group() if found else "", ran.stderr, name, ask.array)

    def resources(self, ask: Ask) -> List[str]:
        """Nodes and ranks, queue, array, memory, variables."""
        words = ["-pe", f"by-{ask.ranks}", str(ask.nodes * ask.ranks)] if ask.nodes > 1 else []
        words += ["-q", ask.queue or "all.q"]
        words += ["-t", f"1-{ask.array}"] if ask.array else []
        words += ["-l", f"h_rss={ask.memory}M"] if ask.memory else []
        variables = ",".join(f"{key}={value}" for key, value in ask.variables)
        return [*words, "-v", variables] if variables else words

    def has_ended(self, submission: Submission) -> bool:
        """The qmaster forgets a job at its end; the nodes, a moment later, tell what it did."""
        if self.root("ctl", "qstat", "-j", submission.id).code == 0:
            return False
        look = f"ls -d /run/hpcwrap/jobs/gridengine-{submission.id}-*; pgrep -f {EPILOG}"
        return not any(self.root(node, "sh", "-c", look).stdout for node in NODES)

    def code(self, submission: Submission) -> int:
        """The accounting's; 137 is signal 9."""
        text = self.root("ctl", "qacct", "-j", submission.id).stdout
        code = int(re.findall(r"^exit_status +(\d+)", text, re.M)[-1])
        return SIGNALLED - code if code > SIGNALLED else code

    def cancel(self, submission: Submission) -> None:
        """By qdel."""
        assert self.alice("qdel", submission.id).code == 0

    def interactive(self, container: str, stdin: str) -> Ran:
        """Qrsh runs a shell, without a terminal where the input is none."""
        words = ["-now", "n", "-pty", "n", "-l", f"container={container}", "sh"]
        return self.alice("timeout", "-s", "KILL", "60", "qrsh", *words, stdin=stdin)

    def each_rank(self, command: str, ranks: int) -> str:
        """As many tasks on each host as the job has slots there."""
        return EACH_SLOT.format(command)

    def mpirun(self, program: str) -> str:
        """Open MPI's, which calls qrsh by itself."""
        return f"mpirun --oversubscribe {program}\n"

    def go_round(self, script: str) -> Submission:
        """The environment went after the filter had its table."""
        return self.submit(Ask(script, "fleeting"))

    def trouble(self) -> str:
        """Queues in any state, and jobs in the state E."""
        text = self.root("ctl", "qstat", "-f", "-u", "*", "-xml").stdout
        found = [
            f"{queue.findtext('name')}: {queue.findtext('state')}"
            for queue in ElementTree.fromstring(text).iter("Queue-List")
            if queue.findtext("state")
        ]
        states = re.findall(r"<state>(\w*E\w*)</state>", text)
        return "\n".join([*found, *states])


DRIVER = GridEngine
