"""Slurm: what slurmd tells its prolog and epilog, in our words (slurm.conf(5), prolog_epilog).

The request comes by one of two ways.  The SPANK plugin puts it into the job's control environment,
which slurmctld keeps and slurmd passes on with SPANK_ before the name.  For clients without that
plugin and for defaults, submit/slurm.lua writes a word into the job's comment.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, List, Mapping, Optional, Tuple

from hpcwrap.config import Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import Job, User, find_user, make_user
from hpcwrap.request import Request, harmless, make_request
from hpcwrap.schedulers import Commands, Launcher, slurm_gpus, slurm_hosts
from hpcwrap.textfile import read_text

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

user_namespace = False
"""slurmstepd calls the SPANK plugin in each rank while it is still root."""

enforces_limits = True
"""By task/cgroup; `hpcwrap setup slurm --check` says what the site has left out."""

serves_pmi = True
"""slurmstepd is the server, as srun's --mpi says."""

CONTROL_VARIABLE = "SPANK_HPCWRAP_CONTAINER"
STEP, STEP_OWNER = "HPCWRAP_STEP", "HPCWRAP_STEP_OWNER"
"""For a container of a step's own, whose prolog the plugin runs: the step's number, and that of its
slurmstepd (docs/decisions/0143)."""

COMMENT_WORD = re.compile(r"(?:^|\s)hpcwrap=(\S+)(?=\s|$)", re.ASCII)
"""With blanks as submit/slurm.lua has them: a word that it does not see was checked by nobody."""

MUNGE_DIRECTORY = "/run/munge"
COMMANDS = (
    *("srun", "sbatch", "salloc", "scancel", "squeue", "sinfo", "scontrol", "sacct", "sstat"),
    *("sprio", "sshare", "sacctmgr", "sbcast", "sattach", "strigger", "scrontab", "sreport"),
)
"""Slurm's commands that jobs call."""

CONFIGURATION = "/etc/slurm/slurm.conf"

UNBOUND = "--cpu-bind=none"
"""Without it all ranks of a node inherit one CPU; where nothing binds, srun complains of it."""

LAUNCH = (
    *("--overlap", "--mem=0", "--nodes=1", "--ntasks=1", "--mpi=none"),
    *("--export=ALL", "--quiet", "--nodelist=%h", "/bin/sh", "-c", "%c"),
)
"""srun without taking anything from other steps, and with all that the job has on the node: it
starts a daemon of mpirun that starts ranks in turn, and those are not to be pinned to one CPU."""

MISLEADING = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_EXACT", "SLURM_HOSTFILE")
"""Input variables of srun that no option of the command line takes back."""


def read_prolog(environ: Mapping[str, str]) -> Tuple[Job, Request]:
    """Read the job and its request from the prolog's environment.

    Raises SiteError when slurmd did not say enough.
    """
    job = Job(
        id=read_job_id(environ),
        scheduler="slurm",
        user=read_user(environ),
        workdir=environ.get("SLURM_JOB_WORK_DIR", ""),
        node=environ.get("SLURMD_NODENAME") or os.uname().nodename,
        places=(
            ("partition", environ.get("SLURM_JOB_PARTITION", "")),
            ("account", environ.get("SLURM_JOB_ACCOUNT", "")),
        ),
        nodes=read_nodes(environ),
        owners=read_owners(environ),
    )
    return job, read_request(environ)


def read_job_id(environ: Mapping[str, str]) -> str:
    """Read the job's id, which names its directory: digits only, or JOB.STEP.  Raises SiteError."""
    job = _number(environ, "SLURM_JOB_ID")
    return f"{job}.{_number(environ, STEP)}" if environ.get(STEP) else job


def read_owners(environ: Mapping[str, str]) -> Tuple[int, ...]:
    """Read whose life is a step's: its slurmstepd's.  None for a job, whose epilog comes."""
    return (int(_number(environ, STEP_OWNER)),) if environ.get(STEP) else ()


def read_gpus(environ: Mapping[str, str]) -> Optional[Gpus]:
    """Read which GPUs the job has on this node; None for none.

    For a step's own container they are what the job's prolog noted: all else is its user's word.
    """
    if environ.get(STEP):
        noted = slurm_gpus.noted(_number(environ, "SLURM_JOB_ID"))
        conf = {"SLURM_CONF": environ["SLURM_CONF"]} if "SLURM_CONF" in environ else {}
        environ = {**conf, **noted}
    if not any(name in environ for name in slurm_gpus.VARIABLES):
        return None
    from hpcwrap import gpus

    found = gpus.read_gpus(environ)
    directory = os.path.dirname(environ.get("SLURM_CONF", CONFIGURATION))
    return found._replace(renumber=not constrains_devices(directory))


def note(environ: Mapping[str, str]) -> None:
    """Note what the job has of this node, for its steps: slurmd tells the job's prolog alone."""
    if not environ.get(STEP):
        slurm_gpus.note(_number(environ, "SLURM_JOB_ID"), environ)


def constrains_devices(directory: str) -> bool:
    """Whether steps can open their own GPUs only, for then Slurm counts those from 0.

    As Slurm does it itself: src/common/gres.c, gres_use_local_device_index.
    """
    plugins = read_value(os.path.join(directory, "slurm.conf"), "TaskPlugin")
    constrained = read_value(os.path.join(directory, "cgroup.conf"), "ConstrainDevices")
    return "cgroup" in plugins.lower() and constrained.lower() in ("yes", "true", "1")


def read_value(path: str, key: str) -> str:
    """Read one value of slurm.conf or cgroup.conf, the last of its key; empty for none."""
    return find_value(read_text(path), key)


def find_value(text: str, key: str) -> str:
    """The last value of a key; empty for none."""
    found = re.findall(rf"^[ \t]*{key}[ \t]*=[ \t]*([^\s#]+)", text, re.IGNORECASE | re.MULTILINE)
    return found[-1] if found else ""


def read_nodes(environ: Mapping[str, str]) -> int:
    """Read how many nodes the job has; 1 where Slurm does not say."""
    text = environ.get("SLURM_JOB_NUM_NODES", "")
    return int(text) if re.fullmatch(r"[0-9]{1,7}", text, re.ASCII) else 1


def read_user(environ: Mapping[str, str]) -> User:
    """Read whose job it is; the group is the job's, which `sbatch --gid` may have changed.

    A user whom this node cannot look up is who Slurm says, with no other groups and no home:
    most jobs want no container, and none of them may fail for it.
    """
    uid = _number(environ, "SLURM_JOB_UID")
    gid = int(_number(environ, "SLURM_JOB_GID")) if "SLURM_JOB_GID" in environ else None
    try:
        user = find_user(uid)
    except UserError:
        own = int(uid) if gid is None else gid
        return User(environ.get("SLURM_JOB_USER") or uid, int(uid), own, (own,), "")
    if gid in (None, user.gid):
        return user
    return make_user(user.name, user.uid, gid or 0, user.home, user.shell)


def read_request(environ: Mapping[str, str]) -> Request:
    """Read the container asked for: the control environment's word counts before the comment's.

    The comment adds the digest that submit/slurm.lua pinned the name to.
    """
    asked = environ.get(CONTROL_VARIABLE)
    word = comment_request(environ.get("SLURM_JOB_COMMENT", ""))
    noted = make_request(harmless(word), "the job's comment") if word else Request(None, "")
    if asked is None:
        return noted
    request = make_request(harmless(asked), "--container")
    if not request.pin and noted.container == request.container:
        return request._replace(pin=noted.pin)
    return request


def account(environ: Mapping[str, str], label: str) -> Optional[List[str]]:
    """Give the arguments of hooks/account_slurm.py; None where accounting has the image already.

    submit/slurm.lua notes the digests that it knows in both comments; on the job's other nodes
    nothing is to be done.
    """
    if environ.get(STEP) or comment_request(environ.get("SLURM_JOB_COMMENT", "")) == label:
        return None
    nodes = slurm_hosts.expand(environ.get("SLURM_NODELIST", ""))
    if nodes[:1] != (environ.get("SLURMD_NODENAME"),):
        return None
    return [read_job_id(environ), label, environ.get("SLURM_CONF", "")]


def comment_request(comment: str) -> Optional[str]:
    """Find NAME of the last ``hpcwrap=NAME`` in a job's comment; submit/slurm.lua appends its own.

    >>> comment_request("run 7 hpcwrap=debian-12")
    'debian-12'
    """
    words = COMMENT_WORD.findall(comment)
    return words[-1] if words else None


def own_mounts(settings: Settings) -> Tuple[Mount, ...]:
    """Give what Slurm's commands, batch scripts and PMIx need at the same paths inside.

    The spool directory as a whole: slurmstepd makes script and PMIx directories in it later.
    """
    return (
        _bind(MUNGE_DIRECTORY, "ro"),
        _bind(spool_directory(settings.slurm_spool_directory, os.environ), "rw"),
        _bind(settings.slurm_configuration_directory, "ro"),
    )


def commands(settings: Settings) -> Optional[Commands]:
    """Give those of Slurm's commands that this host has; None where the setting names none."""
    directory = settings.slurm_commands
    names = tuple(name for name in COMMANDS if os.access(f"{directory}/{name}", os.X_OK))
    scripts = task_prolog(os.environ.get("SLURM_CONF", CONFIGURATION))
    return Commands(directory, names, scripts) if directory and names else None


def task_prolog(configuration: str) -> Tuple[str, ...]:
    """The site's TaskProlog: slurmstepd starts it in each rank, where that has joined (task.c)."""
    script = read_value(configuration, "TaskProlog")
    return (script,) if script.startswith("/") and os.path.isfile(script) else ()


def launcher(settings: Settings, environ: Mapping[str, str]) -> Optional[Launcher]:
    """Say how srun starts a command on another node; MPICH calls srun by itself.

    The job is named: where a user has unset SLURM_JOB_ID, srun would start another job, which has
    no container.
    """
    srun = f"{settings.slurm_commands}/srun"
    if not settings.slurm_commands or not os.access(srun, os.X_OK):
        return None
    nodes = slurm_hosts.expand(environ.get("SLURM_NODELIST", ""))
    job = f"--jobid={environ.get('SLURM_JOB_ID', '%j')}"
    unbound = (UNBOUND,) if binds(environ.get("SLURM_CONF", CONFIGURATION)) else ()
    return Launcher((srun, job, *unbound, *LAUNCH), nodes, MISLEADING, hydra=False)


def binds(path: str) -> bool:
    """False where slurm.conf has no TaskPlugin, so that nothing binds steps to CPUs.

    True where that cannot be told: by another file that it includes, or without slurm.conf.
    """
    text = read_text(path)
    if not text or re.search(r"^[ \t]*include[ \t]", text, re.IGNORECASE | re.MULTILINE):
        return True
    return find_value(text, "TaskPlugin").lower() not in ("", "none", "task/none")


def spool_directory(pattern: str, environ: Mapping[str, str]) -> str:
    """Fill in SlurmdSpoolDir's %n and %h, the node's name and the host's (slurm.conf(5))."""
    host = os.uname().nodename.split(".")[0]
    node = environ.get("SLURMD_NODENAME", host)
    return pattern.replace("%n", node).replace("%h", host)


def _bind(path: str, access: str) -> Mount:
    return Mount(path, path, "bind", (access, "nofail"), "Slurm")


def _number(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
        raise SiteError(
            f"cannot read {name} from the environment of Slurm's prolog: {text or 'missing'}",
            "Prolog and Epilog of slurm.conf must start prolog/slurm.sh and epilog/slurm.sh",
        )
    return text
