"""Jobs by lines of a submit description, as tests of what only HTCondor has submit them."""

from __future__ import annotations

import json
from typing import Any, Dict, List

from driver import LONG
from driver_htcondor import HtCondor

TRANSFER = ("should_transfer_files = yes", "when_to_transfer_output = on_exit")


class Jobs:
    """Jobs that are submitted at once and looked at one by one."""

    def __init__(self, pool: HtCondor) -> None:
        self.pool = pool
        self.ids: Dict[str, str] = {}

    def submit(self, name: str, script: str, *lines: str, number: int = 1) -> str:
        """Submit a job by its lines; what condor_submit says, nothing when all is well."""
        path = f"/home/alice/only-{name}"
        write = f"rm -f {path}.*; cat >{path}.sh; chmod 755 {path}.sh"
        self.pool.alice("sh", "-c", write, stdin=f"#!/bin/sh\n{script}")
        own = [f"executable = {path}.sh", f"output = {path}.out", f"error = {path}.err"]
        text = "\n".join(
            [*own, f"log = {path}.log", "request_memory = 64", *lines, f"queue {number}"]
        )
        ran = self.pool.alice("condor_submit", "-terse", "-", stdin=text + "\n")
        self.ids[name] = ran.stdout.partition(".")[0].strip() if ran.code == 0 else ""
        return "" if ran.code == 0 else ran.stderr

    def ad(self, name: str) -> Dict[str, Any]:
        """What the schedd says of a job."""
        for command in ("condor_q", "condor_history"):
            text = self.pool.root("ctl", command, self.ids[name], "-json").stdout.strip()
            found: List[Dict[str, Any]] = json.loads(text or "[]")
            if found:
                return found[0]
        return {}

    def ended(self, name: str) -> Dict[str, Any]:
        """Wait until a job is completed, removed or held."""
        assert self.ids[name]
        assert self.pool.eventually(lambda: self.ad(name).get("JobStatus") in (3, 4, 5), LONG)
        return self.ad(name)

    def output(self, name: str) -> str:
        """The output of a job that has ended."""
        self.ended(name)
        return self.pool.alice("cat", f"only-{name}.out").stdout

    def errors(self, name: str) -> str:
        """Its standard error."""
        return self.pool.alice("cat", f"only-{name}.err").stdout
