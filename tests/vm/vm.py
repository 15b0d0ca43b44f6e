"""The virtual machine as tests see it: scripts of root in it, and hpcwrap with an image.

    def test_something(vm: Vm) -> None:
        assert "memory" in vm.need("cat /sys/fs/cgroup/cgroup.controllers")

    def test_a_program_of_ours(vm: Vm) -> None:
        vm.add_file("/usr/local/bin/mine", Path("mine").read_bytes())

    def test_a_container(vm: Vm) -> None:
        vm.add_image("tools", "/usr/bin/ibv_devices")      # busybox, and these programs
        vm.add_environment("mine", image="tools", shm_size="64m")
        assert vm.run("hpcwrap run --user alice mine -- id").code == 0

The fixture `slurm` is a Slurm of one node in it, on cgroup v2: `slurm.srun("mine", "id")`.

One machine serves all tests of a run: what a test starts, mounts and makes it takes away again.
There are root, alice (uid 2001) and bob (2002); cgroup v2 with all controllers in its root's
subtree_control; two processors of perhaps a tenth of ours.  What is in /tmp, /run and anywhere
else is kept until the machine ends.  The work tree is at /hpcwrap, as it was when the machine
started, and may be written to without a trace.
"""

import base64
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Sequence

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

from clusterlib.errors import ToolError  # noqa: E402  (the path has to be set first)
from imagelib.cache import DEFAULT_CACHE  # noqa: E402
from vmlib import files  # noqa: E402
from vmlib.machine import Machine, Result  # noqa: E402

__all__ = ["Machine", "Slurm", "ToolError", "Vm", "make"]

# Seconds, for a machine that is busy with other things, too: only a script that hangs needs them.
PATIENCE = 240.0

# A script is one argument: 128 KiB (execve(2), MAX_ARG_STRLEN).  Of base64, a multiple of 4.
PART = 120_000

SITE = "python3 -I /hpcwrap/tests/vm/site_in_vm.py"


class Vm:
    """A running machine with hpcwrap on its PATH."""

    def __init__(self) -> None:
        files.ensure_built(DEFAULT_CACHE)
        self.files = files.files(files.directory(DEFAULT_CACHE))
        self._machine = Machine(self.files)

    def start(self) -> None:
        """Boot it and set hpcwrap up; ToolError has the console's last words."""
        self._machine.start()
        self.need(f"{SITE} set-up")

    def stop(self) -> None:
        """Cut its power."""
        self._machine.stop()

    def run(self, script: str, timeout: float = PATIENCE) -> Result:
        """Run a bash script as root; what it started in its session ends with it."""
        return self._machine.run(script, timeout)

    def need(self, script: str, timeout: float = PATIENCE) -> str:
        """Run a script that must succeed; its standard output."""
        done = self.run(script, timeout)
        assert done.code == 0, f"{script}\nexit code {done.code}\n{done.stdout}{done.stderr}"
        return done.stdout

    def add_image(self, name: str, *programs: str, without: Sequence[str] = ()) -> None:
        """Put an image into the store: busybox's commands, and programs with their libraries.

        A directory among `programs` is copied whole.  `without` are names of libraries that the
        image is to lack.
        """
        self.need(f"{SITE} image {name} '{' '.join(without)}' {' '.join(programs)}")

    def add_file(self, path: str, content: bytes) -> None:
        """Write a file that root owns and all may run; in parts, as long as an argument may be."""
        text = base64.b64encode(content).decode()
        self.need(f": >{path}; chmod 755 {path}")
        for start in range(0, len(text), PART):
            self.need(f"base64 -d <<<{text[start : start + PART]} >>{path}")

    def add_environment(self, name: str, **keys: Any) -> None:
        """Write an environment's file; values are those of its keys."""
        text = json.dumps(keys)  # JSON is YAML
        self.need(f"cat >/etc/hpcwrap/environments.d/{name}.yaml <<'END'\n{text}\nEND")


class Slurm:
    """Slurm in the machine: steps of alice."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def srun(self, environment: str, command: str, *options: str) -> Result:
        """Run a shell command as a job of one rank in an environment's container."""
        words = ["srun", "-n1", "--mem=64", f"--container={environment}", *options]
        user = "setpriv --reuid=alice --regid=alice --init-groups"
        step = shlex.join([*words, "sh", "-c", command])
        return self._vm.run(f"cd /tmp && {user} {step}")


def make() -> Vm:
    """A machine that is up."""
    assert os.geteuid() == 0, "the virtual machine's files are made by root"
    vm = Vm()
    try:
        vm.start()
    except BaseException:
        vm.stop()
        raise
    return vm
