"""PBS: what its hooks pass on of an event, in our words (PBS Professional Hooks Guide).

pbs_mom runs hooks with its own Python, without anybody's environment.  prolog/pbs.py and its like
give a job's attributes to us as variables: those below, and no others.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Dict, List, Mapping, NamedTuple, Optional, Tuple

from hpcwrap import paths
from hpcwrap.config import Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError
from hpcwrap.job import NO_LIMITS, Job, Limits, User, find_user, make_user
from hpcwrap.request import Request, harmless, make_request
from hpcwrap.schedulers import Commands, Launcher
from hpcwrap.textfile import read_text

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

user_namespace = True
"""pbs_mom becomes the user before it starts what a hook has it start."""

enforces_limits = False
"""pbs_cgroups does where it is enabled; then `read_limits` gives none."""

serves_pmi = False
"""pbs_mom's PMIx exchanges no data (mom_pmix.c: "phase one")."""

RESOURCE = "container"
"""`-l container=NAME`: a resource of the server, sent to the nodes (flag=m)."""

VARIABLE = "HPCWRAP_CONTAINER"
"""`-v HPCWRAP_CONTAINER=NAME`, for who cannot say -l."""

PREFIX = "pbs-"
"""Of the ids by which hpcwrap knows PBS's jobs."""

ID = re.compile(r"[0-9]{1,18}(\[[0-9]{1,9}\])?\.[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)
SIZE = re.compile(r"([0-9]{1,18})([kmgtp]?)[bw]?", re.ASCII | re.IGNORECASE)
UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}

CGROUPS = ("/sys/fs/cgroup/*/*/jobid", "/sys/fs/cgroup/*/jobid")
"""Where pbs_cgroups has a directory for each job, on nodes of version 1 and 2."""

COMMANDS = ("pbsdsh", "pbs_tmrsh")
"""They talk to pbs_mom with the job's cookie."""

CLIENTS = ("qsub", "qstat", "qdel", "qalter", "qhold", "qrls", "qsig", "qselect", "pbsnodes")
"""They prove who calls by pbs_iff, a set-user-id program, which no container starts as root; with
munge they need none."""


MPI = (
    ("OMPI_MCA_orte_default_hostfile", "{nodefile}"),
    ("OMPI_MCA_orte_leave_session_attached", "1"),
    ("PRTE_MCA_prte_default_hostfile", "{nodefile}"),
    ("PRTE_MCA_prte_leave_session_attached", "1"),
    ("HYDRA_HOST_FILE", "{nodefile}"),
)
"""For an MPI that was built without libpbs: the nodes of the job.  Its daemons must not leave the
session that pbs_mom started them in, for with that they would leave the job."""


class Installation(NamedTuple):
    """Where PBS is, as pbs.conf(8) has it."""

    programs: str
    home: str
    munge: bool = False
    server: bool = False


def read_prolog(environ: Mapping[str, str]) -> Tuple[Job, Request]:
    """Read the job and its request from what prolog/pbs.py passes on.

    Raises SiteError when it did not pass on enough.
    """
    job = Job(
        id=read_job_id(environ),
        scheduler="pbs",
        user=read_user(environ),
        workdir=environ.get("PBS_O_WORKDIR", ""),
        node=environ.get("PBS_NODE") or os.uname().nodename,
        places=(("queue", environ.get("PBS_QUEUE", "")),),
        nodes=max(1, len(read_hosts(environ))),
        limits=read_limits(environ),
    )
    return job, read_request(environ)


def read_job_id(environ: Mapping[str, str]) -> str:
    """Read the job's id, ``12.server`` or ``12[3].server``; it names a directory.

    Raises SiteError.
    """
    text = environ.get("PBS_JOBID", "")
    if not ID.fullmatch(text):
        raise SiteError(
            f"cannot read the id of PBS's job: {text or 'missing'}", "run `hpcwrap setup pbs`"
        )
    return f"{PREFIX}{text}"


def read_user(environ: Mapping[str, str]) -> User:
    """Read whose job it is on this node, with the group that `qsub -W group_list` may have named.

    Raises UserError for a user or a group that this node does not know.
    """
    import grp

    user = find_user(environ.get("PBS_EUSER", ""))
    name = environ.get("PBS_EGROUP", "")
    try:
        gid = grp.getgrnam(name).gr_gid if name else user.gid
    except KeyError:
        gid = int(name) if name.isdigit() else user.gid
    return user if gid == user.gid else make_user(user.name, user.uid, gid, user.home, user.shell)


def read_request(environ: Mapping[str, str]) -> Request:
    """Read the container asked for, or the default that PBS itself has put in its place."""
    for variable, origin in (("PBS_CONTAINER", f"-l {RESOURCE}"), (VARIABLE, f"-v {VARIABLE}")):
        text = environ.get(variable)
        if text:
            return make_request(harmless(text), origin)
    return Request(None, "")


def read_gpus(environ: Mapping[str, str]) -> Optional[Gpus]:
    """Read which GPUs pbs_cgroups gave the job on this node; None for none.

    It comes before us, and leaves them where pbs_attach(8B) finds a job's variables.
    """
    from hpcwrap import gpus

    directory = f"{read_installation(environ).home}/aux"
    text = read_text(f"{directory}/{environ.get('PBS_JOBID', '')}.env")
    given = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    known = {name: given[name] for name in gpus.VENDORS if name in given}
    return gpus.read_gpus(known) if known else None


def read_hosts(environ: Mapping[str, str]) -> Tuple[str, ...]:
    """The job's nodes, in order, from exec_host2: ``n1:15002/0*2+n2:15002/0``."""
    words = environ.get("PBS_EXEC_HOST2", "").split("+")
    return tuple(dict.fromkeys(word.partition(":")[0] for word in words if word))


# ---- limits ----


def read_limits(environ: Mapping[str, str]) -> Limits:
    """Read what the job may use of this node; nothing where pbs_cgroups sees to it."""
    import glob

    job = glob.escape(environ.get("PBS_JOBID", ""))
    if any(glob.glob(f"{directory}/{job}") for directory in CGROUPS):
        return NO_LIMITS
    node = environ.get("PBS_NODE", "")
    return make_limits(environ.get("PBS_EXEC_VNODE", ""), node)


def make_limits(exec_vnode: str, node: str) -> Limits:
    """Add up the chunks that a job has on a node.

    >>> make_limits("(n1:ncpus=2:mem=1048576kb)+(n2:ncpus=1)", "n1").cpus
    2.0
    """
    amounts: Dict[str, int] = {}
    for chunk in read_chunks(exec_vnode):
        name, _, resources = chunk.partition(":")
        if name == node or name.startswith(f"{node}["):
            for resource in resources.split(":"):
                key, _, value = resource.partition("=")
                amounts[key] = amounts.get(key, 0) + parse_size(value)
    cpus = amounts.get("ncpus")
    return Limits(memory=amounts.get("mem") or None, cpus=float(cpus) if cpus else None)


def read_chunks(exec_vnode: str) -> List[str]:
    """The vnodes of a job with what it has of each: ``n1:ncpus=2``; chunks may have several."""
    return [part for chunk in re.findall(r"\(([^()]*)\)", exec_vnode) for part in chunk.split("+")]


def parse_size(text: str) -> int:
    """A number, or a size as PBS has it (pbs_resources(7)), in bytes; 0 for what is neither.

    >>> parse_size("100mb")
    104857600
    """
    found = SIZE.fullmatch(text)
    return int(found.group(1)) << UNITS[found.group(2).lower()] if found else 0


# ---- the inside ----


def own_mounts(_settings: Settings) -> Tuple[Mount, ...]:
    """Give what jobs find by path: their scripts, and the files that list their nodes.

    The directories as wholes: pbs_mom writes the files later.
    """
    home = read_installation(os.environ).home
    return _bind(f"{home}/mom_priv/jobs"), _bind(f"{home}/aux")


def commands(_settings: Settings) -> Optional[Commands]:
    """Give those of PBS's commands that work inside."""
    place = read_installation(os.environ)
    wanted = COMMANDS + CLIENTS if place.munge else COMMANDS
    directory = f"{place.programs}/bin"
    names = tuple(name for name in wanted if os.access(f"{directory}/{name}", os.X_OK))
    return Commands(directory, names) if names else None


def launcher(_settings: Settings, environ: Mapping[str, str]) -> Optional[Launcher]:
    """Say how pbs_mom starts a command on another node: by pbs_tmrsh, which knows no shell."""
    place = read_installation(environ)
    program = f"{place.programs}/bin/pbs_tmrsh"
    if not os.access(program, os.X_OK):
        return None
    file = f"{place.home}/aux/{environ.get('PBS_JOBID', '')}"
    defaults = tuple((name, value.format(nodefile=file)) for name, value in MPI)
    words = (program, "%h", "/bin/sh", "-c", "%c")
    return Launcher(words, read_hosts(environ), defaults=defaults)


def read_installation(environ: Mapping[str, str]) -> Installation:
    """Read pbs.conf, lines of NAME=VALUE; the defaults of PBS's packages where it says nothing."""
    text = read_text(environ.get("PBS_CONF_FILE") or paths.PBS_CONF)
    found = dict(re.findall(r"^[ \t]*(PBS_\w+)=[ \t]*(\S*)", text, re.MULTILINE))
    return Installation(
        programs=found.get("PBS_EXEC", "/opt/pbs"),
        home=found.get("PBS_MOM_HOME") or found.get("PBS_HOME", "/var/spool/pbs"),
        munge=found.get("PBS_AUTH_METHOD", "").lower() == "munge",
        server=found.get("PBS_START_SERVER", "0") != "0",
    )


def _bind(path: str) -> Mount:
    return Mount(path, path, "bind", ("ro", "nofail"), "PBS")
