"""No scheduler: `hpcwrap run`, where root prepares a container and a given user joins it.

Job ids are `run-PID-START`: number and start time of the process that the container is for, and
that is its owner.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Mapping, Optional, Tuple

from hpcwrap.config import Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError
from hpcwrap.job import NO_LIMITS, Job, Limits, User
from hpcwrap.request import Request
from hpcwrap.run import start_time
from hpcwrap.schedulers import Commands, Launcher

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

user_namespace = True
"""The user joins without privilege."""

enforces_limits = False
"""Nobody else does."""

serves_pmi = False
"""Only mpirun is there."""


def make_job(user: User, limits: Limits = NO_LIMITS) -> Job:
    """The job that this process is, in its working directory."""
    process = os.getpid()
    job_id = f"run-{process}-{start_time(process)}"
    node = os.uname().nodename.split(".")[0]
    return Job(job_id, "local", user, os.getcwd(), node, limits=limits, owners=(process,))


def read_prolog(_environ: Mapping[str, str]) -> Tuple[Job, Request]:
    """Nothing but `hpcwrap run` itself begins a run.  Raises SiteError."""
    raise SiteError("cannot run a prolog without a scheduler", "use `hpcwrap run`")


def read_gpus(_environ: Mapping[str, str]) -> Optional[Gpus]:
    """No scheduler, no GPUs given; `hpcwrap run --gpus` asks for them."""
    return None


def read_job_id(_environ: Mapping[str, str]) -> str:
    """Nothing but `hpcwrap run` itself ends a run.  Raises SiteError."""
    raise SiteError("cannot run an epilog without a scheduler")


def own_mounts(_settings: Settings) -> Tuple[Mount, ...]:
    """No scheduler, no mounts."""
    return ()


def commands(_settings: Settings) -> Optional[Commands]:
    """No scheduler, no commands."""
    return None


def launcher(_settings: Settings, _environ: Mapping[str, str]) -> Optional[Launcher]:
    """No scheduler, no other nodes."""
    return None
