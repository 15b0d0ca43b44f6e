"""Every path that hpcwrap uses; no other module computes one of its own.

`prefix()` is where hpcwrap is installed (a virtual environment, /opt/hpcwrap by default) or, in a
checkout, the repository's root.
"""

from __future__ import annotations

import os
import sys
from typing import Tuple

RUN = "/run/hpcwrap"
"""Node-local, root-owned, gone after a reboot: what running jobs need."""

JOBS = RUN + "/jobs"
"""A directory for each job with a container on this node (a private mount, 0711)."""

ENDED = RUN + "/ended"
"""What is remembered of jobs that have ended (0711); each file is root's and its user's to read."""

GPUS = RUN + "/gpus"
"""A file for each of Slurm's jobs with GPUs, which says which; root's alone."""

HELPER_SOCKET = RUN + "/helper.sock"
"""Where the helper listens (hpcwrap-helper.socket); everyone may connect."""

HELPER_TURNS = RUN + "/helper-turns"
"""A file with a lock for each container: one call of the helper at a time."""

SWEPT = RUN + "/swept"
"""Is there from the first `hpcwrap sweep` after a boot on."""

CONFIG_FILE = "/etc/hpcwrap/hpcwrap.yaml"
"""The site's settings; $HPCWRAP_CONFIG names another file (ignored when set-uid or in a hook)."""

SLURM_TABLE = "/var/lib/hpcwrap/slurm_table.lua"
"""What slurmctld knows of environments, for submit/slurm.lua; written by `hpcwrap setup slurm`."""

GRIDENGINE_TABLE = "/var/lib/hpcwrap/gridengine_table.json"
"""What Grid Engine's job filter knows of environments; written by `hpcwrap setup gridengine`."""

PBS_CONF = "/etc/pbs.conf"
"""Where PBS is; on hosts without PBS it is not there."""

ENVIRONMENTS_NAME = "environments.d"
"""Directory of environments, beside the settings file."""

DROP_INS_NAME = "conf.d"
"""Directory of more settings, beside the settings file; they win over it."""

SNAPSHOTS = RUN + "/snapshots"
"""Settings and environments as the prolog reads them; root's alone."""

LIBRARIES = RUN + "/libraries"
"""What the host's libraries were found to need; root's alone."""

CDI = RUN + "/cdi.json"
"""The CDI specs of the node as the prolog reads them; root's alone."""


def auth_files(uid: int, home: str) -> Tuple[str, ...]:
    """Where a user's passwords for registries may be, the first first (containers-auth.json(5)).

    The variables that could move them are in the user's processes, not in a prolog's.
    """
    return (
        f"/run/user/{uid}/containers/auth.json",
        f"/run/containers/{uid}/auth.json",
        os.path.join(home, ".config/containers/auth.json"),
        os.path.join(home, ".docker/config.json"),
    )


class JobPaths:
    """What lies in the directory of one job on one node."""

    def __init__(self, job_id: str, jobs: str = JOBS) -> None:
        self.directory = os.path.join(jobs, job_id)
        self.record = os.path.join(self.directory, "record.json")
        self.entry = os.path.join(self.directory, "entry")
        self.error = os.path.join(self.directory, "error")
        self.timing = os.path.join(self.directory, "timing")
        self.namespaces = os.path.join(self.directory, "ns")
        self.mount_namespace = os.path.join(self.namespaces, "mnt")
        self.user_namespace = os.path.join(self.namespaces, "user")
        self.cgroups = os.path.join(self.directory, "cgroups")
        self.asked = os.path.join(self.directory, "asked")
        self.holder = os.path.join(self.directory, "holder")
        self.owners = os.path.join(self.directory, "owners")
        self.leases = os.path.join(self.directory, "leases")
        self.turns = os.path.join(os.path.dirname(jobs), "turns")
        """A file of the node: a lock for each job (`owners.turn`)."""
        self.listener = os.path.join(self.directory, "listener")
        self.stage = os.path.join(os.path.dirname(jobs), "stage")
        """An empty directory of the node: each builder mounts its tmpfs there, for itself alone."""
        self.good_cpu = os.path.join(os.path.dirname(jobs), "good-cpu")
        """A link of the node: the CPU on which the last mount namespace could be pinned."""


def prefix() -> str:
    """Where hpcwrap's programs and data lie: the virtual environment, or the checkout."""
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.exists(os.path.join(checkout, "pyproject.toml")):
        return checkout
    return sys.prefix


def data(*names: str) -> str:
    """A shipped data file or directory: ``data("templates")``, ``data("prolog", "slurm.sh")``."""
    root = prefix()
    installed = os.path.join(root, "share", "hpcwrap")
    return os.path.join(installed if os.path.isdir(installed) else root, *names)


def enter_program() -> str:
    """The compiled rank entry program, native/hpcwrap-enter."""
    return _built("libexec/hpcwrap/hpcwrap-enter", "hpcwrap-enter")


def host_program() -> str:
    """The compiled program behind the host's commands inside, native/hpcwrap-host."""
    return _built("libexec/hpcwrap/hpcwrap-host", "hpcwrap-host")


def launch_program() -> str:
    """The compiled program that starts commands on a job's other nodes, native/hpcwrap-launch."""
    return _built("libexec/hpcwrap/hpcwrap-launch", "hpcwrap-launch")


def singularity_program() -> str:
    """The compiled program behind HTCondor's SINGULARITY knob, native/hpcwrap-singularity."""
    return _built("libexec/hpcwrap/hpcwrap-singularity", "hpcwrap-singularity")


def starter_program() -> str:
    """The compiled starter_method of Grid Engine, native/hpcwrap-starter."""
    return _built("libexec/hpcwrap/hpcwrap-starter", "hpcwrap-starter")


def tell_program() -> str:
    """The compiled program that tells a job of its memory limit, native/hpcwrap-tell."""
    return _built("libexec/hpcwrap/hpcwrap-tell", "hpcwrap-tell")


def wait_program() -> str:
    """The compiled program that waits for a process to end, native/hpcwrap-wait."""
    return _built("libexec/hpcwrap/hpcwrap-wait", "hpcwrap-wait")


def inside_programs(other: str) -> Tuple[str, ...]:
    """Our programs for the inside of a container that has other nodes beside it."""
    return (launch_program(), data("enter", other))


def spank_plugin() -> str:
    """The compiled SPANK plugin."""
    return _built("lib/hpcwrap/spank_hpcwrap.so", "spank_hpcwrap.so")


def _built(installed: str, name: str) -> str:
    root = prefix()
    if os.path.exists(os.path.join(root, "pyproject.toml")):
        return os.path.join(root, "native", "build", name)
    return os.path.join(root, installed)
