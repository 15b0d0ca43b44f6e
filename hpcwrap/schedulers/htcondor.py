"""HTCondor: what the program behind its SINGULARITY knob tells the helper, in our words.

HTCondor runs nothing as root with the job at hand, so root's part is the helper's
(docs/decisions/0100, 0103), and all that is read here was said by the job's user.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Mapping, Optional, Tuple

from hpcwrap.config import Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import Job, User
from hpcwrap.request import Request, is_plain, make_request
from hpcwrap.schedulers import Commands, Launcher

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

user_namespace = True
"""The starter runs everything as the user."""

enforces_limits = False
"""The starter does where it has cgroups of version 2; then the helper is not asked for limits."""

serves_pmi = False
"""Only mpirun is there."""

POOL = "default"
"""The one name of a pool in `defaults`: a node is in one."""

DEFAULT = "hpcwrap:default"
"""The image of jobs that name none, as the configuration has it for nodes with a default."""

FAILED = 125
"""What a job ends with whose container could not be made, as with hpcwrap-enter."""

ERROR_ATTRIBUTE = "ChirpHpcwrapError"
"""Where the reason is left in the job's ad: without more rights a job may only add to its ad what
begins with Chirp (CHIRP_DELAYED_UPDATE_PREFIX)."""

CONTAINER, ORIGIN, JOB, SLOT, WORKDIR = "container", "origin", "job", "slot", "workdir"
"""What the message's variables are called."""

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""The starter sets them; one that a job has no GPUs by is set, too."""

NUMBER_OF_NODES = "_CONDOR_NPROCS"
"""The starter sets it for jobs of the parallel universe only."""

CALLER_VARIABLES = (*GPU_VARIABLES, NUMBER_OF_NODES)

NO_GPUS = "10000"
"""What the starter sets them to for a job without (condor_utils, "environment for GPUs")."""

COMMANDS = ("condor_chirp",)
NODES_PROGRAM, LAUNCH = "hpcwrap-mpi", ("--start", "%h", "%c")
LIBEXEC = "/usr/libexec/condor"


def read_prolog(_environ: Mapping[str, str]) -> Tuple[Job, Request]:
    """HTCondor has no prolog.  Raises SiteError."""
    raise SiteError("cannot run a prolog of HTCondor's", "the helper makes its containers")


def read_job_id(_environ: Mapping[str, str]) -> str:
    """HTCondor has no epilog.  Raises SiteError."""
    raise SiteError("cannot run an epilog of HTCondor's", "the helper drops its containers")


def read_caller(variables: Mapping[str, str], user: User) -> Tuple[Job, Request]:
    """Read the job and its request.  Raises UserError for what no starter says."""
    number, slot = variables.get(JOB, ""), variables.get(SLOT, "")
    if not re.fullmatch(r"[0-9]{1,10}\.[0-9]{1,10}", number, re.ASCII):
        raise UserError(f"cannot make a container: {number!r} is no job of HTCondor's")
    if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", slot, re.ASCII):
        raise UserError(f"cannot make a container: {slot!r} is no slot")
    job = Job(
        id=f"htcondor-{number}-{slot}",
        scheduler="htcondor",
        user=user,
        workdir=variables.get(WORKDIR, ""),
        node=os.uname().nodename.partition(".")[0],
        places=(("pool", POOL),),
    )
    return job, read_request(variables)


def read_request(variables: Mapping[str, str]) -> Request:
    """Read the container that was asked for; the node's default for a job that named none."""
    asked = variables.get(CONTAINER, DEFAULT)
    if asked == DEFAULT:
        return Request(None, "")
    if not is_plain(asked):
        raise UserError("cannot use container_image: it is no name, image or path as one can be")
    return make_request(asked, variables.get(ORIGIN, "container_image")[:64])


def read_gpus(environ: Mapping[str, str]) -> Optional[Gpus]:
    """Read which GPUs the job has; None for none."""
    given = {name: environ[name] for name in GPU_VARIABLES if name in environ}
    given = {name: value for name, value in given.items() if value != NO_GPUS}
    if not given:
        return None
    from hpcwrap import gpus

    return gpus.read_gpus(given)


def own_mounts(_settings: Settings) -> Tuple[Mount, ...]:
    """None of the site's: the scratch directory comes with the options of each job."""
    return ()


def commands(_settings: Settings) -> Optional[Commands]:
    """Give condor_chirp, by which a job talks to its starter."""
    names = tuple(name for name in COMMANDS if os.access(f"{LIBEXEC}/{name}", os.X_OK))
    return Commands(LIBEXEC, names) if names else None


def launcher(_settings: Settings, environ: Mapping[str, str]) -> Optional[Launcher]:
    """In the parallel universe the script runs on each node, and hpcwrap-mpi in it (0104)."""
    if NUMBER_OF_NODES not in environ:
        return None
    return Launcher((f"/.hpcwrap/bin/{NODES_PROGRAM}", *LAUNCH), program=NODES_PROGRAM)
