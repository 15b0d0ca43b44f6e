"""The suite in HTCondor's words: a submit description is the script with the directives."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Dict, List

from cluster_site import NODES, Ran
from driver import LONG, Ask, Driver, Ended, Submission

HELD = 5
ENDED = (3, 4, HELD)
"""JobStatus of jobs that were removed, completed or held."""

USUAL_MEMORY = 64
"""MiB of each job: a slot that a job has left is the next one's as it is, larger ones too."""


class HtCondor(Driver):
    """condor_submit, condor_q, condor_rm; the parallel universe for several nodes."""

    NAME = "htcondor"
    DIRECTIVE = "container = {}"
    LINE = "-append container={}"
    UNKNOWN = r"ERROR: hpcwrap: cannot find the environment debain-12 \(known are .*debian-12"
    FORBIDDEN = r"ERROR: hpcwrap: alice may not use the environment bobs: it is for named users"
    CANNOT: ClassVar[Dict[str, str]] = {
        "default": "a pool has no queues; its one default is in tests/htcondor",
    }

    def submit(self, ask: Ask) -> Submission:
        """By condor_submit, the description on its standard input."""
        name = self.new_name()
        where = f"/home/alice/{ask.workdir}".rstrip("/")
        self.alice("mkdir", "-p", where)
        script = f"/home/alice/{name}.sh"
        self.alice(
            "sh", "-c", f"cat >{script}; chmod 755 {script}", stdin=f"#!/bin/sh\n{ask.script}"
        )
        lines = [f"executable = {script}", f"initialdir = {where}", *self.files(name, ask)]
        lines += [*self.resources(ask), self.directives(ask), f"queue {max(ask.array, 1)}"]
        words = self.options(ask)
        ran = self.alice("condor_submit", "-terse", "-", *words, stdin="\n".join(lines) + "\n")
        number = ran.stdout.partition(".")[0].strip() if ran.code == 0 else ""
        return Submission(number, ran.stdout + ran.stderr, name, ask.array or ask.nodes - 1)

    def files(self, name: str, ask: Ask) -> List[str]:
        """Output, error and input; elements and nodes are numbered from 1 in names of files."""
        number = "$(Process)" if ask.array else "$(Node)" if ask.nodes > 1 else ""
        suffix = f".{number}" if number else ""
        lines = [
            f"output = /home/alice/{name}.out{suffix}",
            f"error = /home/alice/{name}.err{suffix}",
        ]
        given = self.write_input(name, ask)
        return [*lines, f"input = {given}"] if given else lines

    def resources(self, ask: Ask) -> List[str]:
        """Nodes, memory, variables."""
        lines = [f"request_memory = {ask.memory or (200 if ask.nodes > 1 else USUAL_MEMORY)}"]
        if ask.nodes > 1:
            lines += ["universe = parallel", f"machine_count = {ask.nodes}"]
        pairs = " ".join(f"{key}='{value}'" for key, value in ask.variables)
        return [*lines, f'environment = "{pairs}"'] if pairs else lines

    def _texts(self, submission: Submission, kind: str) -> List[str]:
        name = f"{submission.name}.{kind}"
        if not submission.array:
            return [self.alice("cat", name).stdout]
        text = self.alice("sh", "-c", f"ls {name}.*").stdout
        return [self.alice("cat", each).stdout for each in text.split()]

    def ads(self, submission: Submission) -> List[Dict[str, Any]]:
        """What the schedd says of a job, of each element of an array; at its end, too."""
        found: List[Dict[str, Any]] = []
        for command in ("condor_q", "condor_history"):
            text = self.root("ctl", command, submission.id, "-json").stdout.strip()
            found += json.loads(text or "[]")
        return found

    def has_ended(self, submission: Submission) -> bool:
        """A job whose container could not be made is held, and that is its end."""
        ads = self.ads(submission)
        return bool(ads) and all(ad["JobStatus"] in ENDED for ad in ads)

    def code(self, submission: Submission) -> int:
        """ExitCode, or the signal."""
        ad = self.ads(submission)[0]
        return -int(ad["ExitSignal"]) if ad.get("ExitBySignal") else int(ad["ExitCode"])

    def wait(self, submission: Submission) -> Ended:
        """Why a job is held is for the user, too."""
        ended = super().wait(submission)
        reasons = [ad.get("HoldReason", "") for ad in self.ads(submission)]
        return ended._replace(errors="\n".join([ended.errors, *reasons]))

    def add_settings(self, name: str, text: str) -> None:
        """Not while jobs wait: a node has room for one of several nodes at a time."""
        words = ("condor_q", "-all", "-af", "ClusterId", "-const", f"JobStatus != {HELD}")
        assert self.eventually(lambda: not self.root("ctl", *words).stdout.strip(), LONG)
        super().add_settings(name, text)

    def cancel(self, submission: Submission) -> None:
        """By condor_rm."""
        assert self.alice("condor_rm", submission.id).code == 0

    def interactive(self, container: str, stdin: str) -> Ran:
        """condor_submit -interactive, on a terminal."""
        lines = (f"container={container}", f"request_memory={USUAL_MEMORY}")
        command = " ".join(["condor_submit -interactive", *(f"-append {line}" for line in lines)])
        run = ("env", "TERM=dumb", "timeout", "90", "script", "-qec", command, "/dev/null")
        return self.alice(*run, stdin=stdin)

    def each_rank(self, command: str, ranks: int) -> str:
        """HTCondor starts the script once on each node, and that starts the ranks."""
        return f"for i in $(seq {ranks}); do /bin/sh -c '{command}' & done; wait\n"

    def mpirun(self, program: str) -> str:
        """Open MPI's, on the first node of those that run the script."""
        return f"hpcwrap-mpi mpirun --oversubscribe -npernode 2 {program}\n"

    def go_round(self, script: str) -> Submission:
        """The environment went after the schedd had its table."""
        return self.submit(Ask(script, "fleeting"))

    def trouble(self) -> str:
        """Nodes that are gone, or on which the starter found no hpcwrap."""
        words = ("condor_status", "-af", "Machine", "-const", "HasHpcwrap")
        there = {line.partition(".")[0] for line in self.root("ctl", *words).stdout.split()}
        return " ".join(sorted(set(NODES) - there))


DRIVER = HtCondor
