"""LSF: what a job's own processes say of it, in our words (IBM LSF 10.1, volclava 2.2).

No root hook is used: what LSF runs as root before a job has the user's environment, LD_PRELOAD
included (docs/decisions/0120).  A job asks the helper instead, as its user, on each of its hosts.
So all that is read here is the user's word, but for who the user is.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Mapping, Optional, Tuple

from hpcwrap import paths
from hpcwrap.config import Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import Job, User
from hpcwrap.request import Request, is_plain, make_request
from hpcwrap.schedulers import Commands, Launcher

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

user_namespace = True
"""A job's processes are its user's from the first to the last."""

enforces_limits = False
"""volclava looks and kills a moment later.  Where IBM LSF has made a cgroup, none is asked for."""

serves_pmi = False
"""Only mpirun is there."""

VARIABLE = "HPCWRAP_REQUEST"
"""How the request travels: esub puts it into the job's environment, or the user does.

Not HPCWRAP_CONTAINER, which says inside what the container is: a job submitted from there would ask
for that very digest, and a task on a later host in other words than the job."""

INSIDE = "HPCWRAP_LSF"
"""JOB.INDEX in a job's processes from the starter on: its file is read twice (decision 0121)."""

WORDS = (
    *("LSB_JOBID", "LSB_JOBINDEX", "LSB_QUEUE", "LSB_APPLICATION_NAME", "LSB_MCPU_HOSTS"),
    *("LS_SUBCWD", VARIABLE),
)
"""What the helper is told of a job."""

CALLER_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"),
    *("LSB_MCPU_HOSTS", "LSB_JOBID"),
)

COMMANDS = (
    *("bsub", "bjobs", "bkill", "bstop", "bresume", "bmod", "bhosts", "bqueues", "bhist", "bpeek"),
    *("brequeue", "bswitch", "btop", "bbot", "bparams", "busers", "bmgroup", "bugroup", "bpost"),
    *("bread", "bresize", "bapp", "blaunch", "lsrun", "lsid", "lshosts", "lsload", "lsplace"),
    *("lsgrun", "lsinfo", "bacct", "brun", "bchkpnt", "brestart", "bmig"),
)
"""LSF's commands that jobs call."""

MPI = (
    ("OMPI_MCA_orte_default_dash_host", "{hosts}"),
    ("OMPI_MCA_orte_leave_session_attached", "1"),
    ("PRTE_MCA_prte_default_dash_host", "{hosts}"),
    ("PRTE_MCA_prte_leave_session_attached", "1"),
    ("HYDRA_RMK", "lsf"),
)
"""For an MPI that was built without LSF's library: the job's hosts and their slots, which MPICH's
can read itself.  Its daemons must not leave the session that they were started in: their container
is dropped when the command that LSF started there has ended."""

TELL = """\
{ LSF_INTERACTIVE_STDERR=y "$0" -m "$1" -- "$2" --tell "$3" 2>&1 >&3 3>&- | {
while IFS= read -r line; do
case $line in
"hpcwrap-code-$LSB_JOBID "*) exit "${line##* }" ;;
*) printf '%s\\n' "$line" >&2 ;;
esac
done
exit 255
}; } 3>&1
"""
"""lsrun of volclava ends with 0 whatever its task did: the task tells its code on stderr, last.

One that told none has not run; 255 is what ssh ends with then.  Without the variable lsrun would
put both streams into one (lsf.conf(5)).
"""


def read_prolog(_environ: Mapping[str, str]) -> Tuple[Job, Request]:
    """Nothing of LSF's runs a prolog as root.  Raises SiteError."""
    raise SiteError(
        "cannot run LSF's prolog as root", "PRE_EXEC of lsb.queues must run as the job's user"
    )


def read_job_id(_environ: Mapping[str, str]) -> str:
    """Nothing of LSF's runs an epilog as root.  Raises SiteError."""
    raise SiteError(
        "cannot run LSF's epilog as root", "POST_EXEC of lsb.queues must run as the job's user"
    )


def read_caller(variables: Mapping[str, str], user: User) -> Tuple[Job, Request]:
    """Read the job and its request from what a job's process says.  Raises UserError."""
    queue = variables.get("LSB_QUEUE", "")
    application = variables.get("LSB_APPLICATION_NAME", "")
    job = Job(
        id=f"lsf-{job_name(variables).replace('.', '-')}",
        scheduler="lsf",
        user=user,
        workdir=work_directory(variables),
        node=os.uname().nodename.split(".")[0],
        places=(("queue", queue), ("application", application)),
        nodes=max(1, len(host_slots(variables.get("LSB_MCPU_HOSTS", "")))),
    )
    return job, read_request(variables)


def job_name(variables: Mapping[str, str]) -> str:
    """JOB.INDEX, the index 0 for no array.  Raises UserError outside of a job."""
    number, index = variables.get("LSB_JOBID", ""), variables.get("LSB_JOBINDEX", "0")
    if not all(re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) for text in (number, index)):
        raise UserError(
            "cannot make a container: LSB_JOBID and LSB_JOBINDEX are not those of a job"
        )
    return f"{number}.{index}"


def work_directory(variables: Mapping[str, str]) -> str:
    """The directory of the submission, in which LSF starts the job."""
    path = variables.get("LS_SUBCWD", "")
    return os.path.normpath(path) if path.startswith("/") else ""


def read_request(variables: Mapping[str, str]) -> Request:
    """Read the container asked for; none where the variable is not there."""
    text = variables.get(VARIABLE)
    if not text:
        return Request(None, "")
    if not is_plain(text):
        raise UserError(f"cannot use ${VARIABLE}: its value is no environment's name")
    return make_request(text, f"${VARIABLE}")


def host_slots(text: str) -> Tuple[Tuple[str, int], ...]:
    """Read LSB_MCPU_HOSTS, which has hosts and their slots in turn.

    >>> host_slots("n1 4 n2 2 ")
    (('n1', 4), ('n2', 2))
    """
    words = text.split()
    pairs = zip(words[::2], words[1::2])
    return tuple((host, int(slots)) for host, slots in pairs if slots.isdigit())


def memory_limit(text: str) -> int:
    r"""Find MEMLIMIT in what `bjobs -l` says of a job: bytes, 0 for none.

    >>> memory_limit(" CORELIMIT MEMLIMIT\n      0 K   65536 K\n")
    67108864
    """
    found = re.search(r"^[ \t]*((?:\w+LIMIT[ \t]*)+)\n(.*)", text, re.MULTILINE)
    if not found or "MEMLIMIT" not in found.group(1).split():
        return 0
    values = re.findall(r"([0-9.]+) ([KMGT])\b", found.group(2))
    column = found.group(1).split().index("MEMLIMIT")
    if column >= len(values):
        return 0
    number, unit = values[column]
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def read_gpus(environ: Mapping[str, str]) -> Optional[Gpus]:
    """Read which GPUs IBM LSF gave the job on this host; None for none."""
    if not any(name in environ for name in CALLER_VARIABLES[:3]):
        return None
    from hpcwrap import gpus

    return gpus.read_gpus(environ)


def own_mounts(_settings: Settings) -> Tuple[Mount, ...]:
    """None of root's: the directory of the job's file is the user's, who asks for it."""
    return ()


def commands(settings: Settings) -> Optional[Commands]:
    """Give those of LSF's commands that this host has; None where the setting names none."""
    directory = settings.lsf_commands
    names = tuple(name for name in COMMANDS if os.access(f"{directory}/{name}", os.X_OK))
    return Commands(directory, names) if directory and names else None


def launcher(settings: Settings, environ: Mapping[str, str]) -> Optional[Launcher]:
    """Say how a command gets to another host of the job: blaunch where there is one, else lsrun."""
    directory = settings.lsf_commands
    slots = host_slots(environ.get("LSB_MCPU_HOSTS", ""))
    hosts = tuple(host for host, _ in slots)
    listed = ",".join(f"{host}:{number}" for host, number in slots)
    defaults = tuple((name, value.format(hosts=listed)) for name, value in MPI) if slots else ()
    task = paths.data("enter", "lsf-task.sh")
    if directory and os.access(f"{directory}/blaunch", os.X_OK):
        return Launcher((f"{directory}/blaunch", "%h", task, "%c"), hosts, defaults=defaults)
    if directory and os.access(f"{directory}/lsrun", os.X_OK):
        words = ("/bin/sh", "-c", TELL, f"{directory}/lsrun", "%h", task, "%c")
        return Launcher(words, hosts, defaults=defaults)
    return None
