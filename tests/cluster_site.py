"""A cluster of tools/cluster with hpcwrap on it, whatever its scheduler, as tests use it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple

REPOSITORY = Path(__file__).parents[1]
TOOLS = REPOSITORY / "tools"
SETTINGS = "/shared/hpcwrap/etc"
NODES = ("n1", "n2")
IMAGES = ("debian-12", "busybox-1")
KEEP = "HPCWRAP_TEST_KEEP"
SLURM = "HPCWRAP_SLURM"
"""The release of Slurm that tools/cluster brings up: tools/README.md has them all."""


class Ran(NamedTuple):
    """A command's end."""

    code: int
    stdout: str
    stderr: str


class ClusterSite:
    """Two nodes and a submit host; every call prints what it ran, for failures."""

    def __init__(self, state: str, scheduler: str) -> None:
        self.state = state
        self.scheduler = scheduler
        self.polling = False
        self.foreign: List[str] = []
        """Cgroups that were there before: another cluster's nodes may have the same names."""

    def bring_up(self) -> None:
        """Cluster, images and hpcwrap, unless a cluster of an earlier run was kept."""
        if not os.environ.get(KEEP):
            # A killed run leaves its cluster, and that of another checkout sees the wrong files.
            self.need("cluster", "down")
        if self.tool("cluster", "status").code != 0:
            self.need("cluster", "up", "--scheduler", self.scheduler)
            for image in IMAGES:
                self.need("image", "build", image)
                self.need("image", "push", image)
        self.need("site", "--scheduler", self.scheduler)

    def take_down(self) -> None:
        """The end of it, unless the next run is to have it."""
        if not os.environ.get(KEEP):
            self.need("cluster", "down")

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

    def bob(self, *words: str, stdin: str = "") -> Ran:
        """Run a command on the submit host as bob."""
        return self.tool("cluster", "as", "bob", *words, stdin=stdin)

    def root(self, node: str, *words: str, stdin: str = "") -> Ran:
        """Run a command on a node as root."""
        return self.tool("cluster", "exec", node, *words, stdin=stdin)

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

    # ---- what an administrator does ----

    def write_environment(self, name: str, text: str) -> None:
        """Write an environment; the scheduler is not told."""
        path = f"{SETTINGS}/environments.d/{name}.yaml"
        self.need("cluster", "exec", "ctl", "tee", path, stdin=text)

    def add_environment(self, name: str, text: str) -> None:
        """Write an environment and tell the scheduler, as an administrator would."""
        self.write_environment(name, text)
        self.tell_scheduler()

    def tell_scheduler(self) -> None:
        """Renew the scheduler's table of environments."""
        self.need("cluster", "exec", "ctl", "hpcwrap", "setup", self.scheduler, "--table")

    def remove_environment(self, name: str) -> None:
        """Take an environment away behind the scheduler's back."""
        self.need("cluster", "exec", "ctl", "rm", f"{SETTINGS}/environments.d/{name}.yaml")

    def add_settings(self, name: str, text: str) -> None:
        """Write more settings, which win over the site's."""
        directory = f"{SETTINGS}/conf.d"
        self.need("cluster", "exec", "ctl", "mkdir", "-p", directory)
        self.need("cluster", "exec", "ctl", "tee", f"{directory}/{name}.yaml", stdin=text)

    def remove_settings(self, name: str) -> None:
        """Take them away again."""
        self.need("cluster", "exec", "ctl", "rm", "-f", f"{SETTINGS}/conf.d/{name}.yaml")

    # ---- what a node has left ----

    def leftovers(self, node: str) -> List[str]:
        """All that jobs could leave on a node: directories, mounts, loop devices, cgroups."""
        jobs = self.root(node, "ls", "/run/hpcwrap/jobs").stdout.split()
        mounts = self.root(node, "cat", "/proc/self/mountinfo").stdout.splitlines()
        pins = [line for line in mounts if "nsfs" in line or "squashfs" in line]
        return [*jobs, *pins, *self.loop_devices(), *self.cgroups(node)]

    def loop_devices(self) -> List[str]:
        """The machine's loop devices with images of this cluster's store, by their inode."""
        images = Path(self.state, "shared", "hpcwrap", "store", "images").glob("*.sqsh")
        own = {str(image.stat().st_ino) for image in images}
        words = ("losetup", "--list", "--noheadings", "--output", "BACK-INO,NAME")
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if line.split()[0] in own]

    def cgroups(self, node: str) -> List[str]:
        """Cgroups that hpcwrap has made for jobs of this scheduler on a node."""
        # A name has the scheduler's in it: other clusters share the machine's tree.
        name = f"hpcwrap-{self.scheduler}-*-{node}"
        found = self.root(node, "find", "/sys/fs/cgroup", "-maxdepth", "4", "-name", name)
        return [path for path in found.stdout.split() if path not in self.foreign]


class Clusters:
    """The clusters of a session, each brought up when the first test asks for it."""

    def __init__(self) -> None:
        self._up: Dict[str, ClusterSite] = {}

    def need(self, site: ClusterSite) -> None:
        """Bring a site up, unless another test has had it brought up."""
        if site.state not in self._up:
            self._up[site.state] = site
            site.bring_up()

    def take_down(self) -> None:
        """End all of them."""
        for site in self._up.values():
            site.take_down()


def state_of(scheduler: str) -> str:
    """The state directory of the tests' cluster of a scheduler."""
    base = os.environ.get("HPCWRAP_CLUSTER", "/var/tmp/hpcwrap-test-cluster")
    if scheduler == "slurm":
        release = os.environ.get(SLURM)
        return f"{base}-{release}" if release else base
    return f"{base}-{scheduler}"
