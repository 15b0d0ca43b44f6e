"""The cluster of tools/cluster as the tests use it."""

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Callable, NamedTuple

REPOSITORY = Path(__file__).parents[2]
TOOLS = REPOSITORY / "tools"
SETTINGS = "/shared/hpcwrap/etc"
NODES = ("n1", "n2")


class Ran(NamedTuple):
    """A command's end."""

    code: int
    stdout: str
    stderr: str


class Site:
    """Two nodes and a submit host with hpcwrap; every call prints what it ran, for failures."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.polling = False

    def tool(self, name: str, *words: str, stdin: str = "", timeout: float = 300) -> Ran:
        """Run one of the tools on this cluster."""
        done = subprocess.run(
            [str(TOOLS / name), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "HPCWRAP_CLUSTER": self.state},
        )
        if not self.polling:
            print(f"$ {name} {' '.join(words)}\n{done.stdout}{done.stderr}[{done.returncode}]")
        return Ran(done.returncode, done.stdout, done.stderr)

    def need(self, name: str, *words: str, stdin: str = "", timeout: float = 900) -> str:
        """Run a tool that must work; its stdout."""
        ran = self.tool(name, *words, stdin=stdin, timeout=timeout)
        assert ran.code == 0, ran.stderr
        return ran.stdout

    def alice(self, *words: str, stdin: str = "") -> Ran:
        """Run a command on the submit host as alice, in her home."""
        return self.tool("cluster", "as", "alice", *words, stdin=stdin)

    def bob(self, *words: str) -> Ran:
        """Run a command on the submit host as bob."""
        return self.tool("cluster", "as", "bob", *words)

    def root(self, node: str, *words: str, stdin: str = "") -> Ran:
        """Run a command on a node as root."""
        return self.tool("cluster", "exec", node, *words, stdin=stdin)

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

    def eventually(self, condition: Callable[[], bool], limit: float = 20.0) -> bool:
        """Wait for what a daemon does a moment later, without telling of each look."""
        until = time.monotonic() + limit
        self.polling = True
        try:
            while not condition():
                if time.monotonic() > until:
                    return False
                time.sleep(0.1)
        finally:
            self.polling = False
        return True

    def job(self, job_id: str) -> str:
        """Slurm's view of a job."""
        return self.root("ctl", "scontrol", "show", "job", job_id).stdout

    def node_states(self) -> "set[str]":
        """States of all nodes, short words."""
        return set(self.root("ctl", "sinfo", "-h", "-N", "-o", "%t").stdout.split())

    def add_environment(self, name: str, text: str) -> None:
        """Write an environment and renew the filter's table, as an administrator would."""
        path = f"{SETTINGS}/environments.d/{name}.yaml"
        self.need("cluster", "exec", "ctl", "tee", path, stdin=text)
        self.need("cluster", "exec", "ctl", "hpcwrap", "setup", "slurm", "--table")

    def add_settings(self, name: str, text: str) -> None:
        """Write more settings, which win over the site's."""
        directory = f"{SETTINGS}/conf.d"
        self.need("cluster", "exec", "ctl", "mkdir", "-p", directory)
        self.need("cluster", "exec", "ctl", "tee", f"{directory}/{name}.yaml", stdin=text)

    def remove_settings(self, name: str) -> None:
        """Take them away again."""
        self.need("cluster", "exec", "ctl", "rm", "-f", f"{SETTINGS}/conf.d/{name}.yaml")

    def remove_environment(self, name: str) -> None:
        """Take an environment away behind the filter's back."""
        self.need("cluster", "exec", "ctl", "rm", f"{SETTINGS}/environments.d/{name}.yaml")


class Job(NamedTuple):
    """A batch job that has ended; without an id, one that was refused."""

    id: str
    code: int
    output: str
    stderr: str
