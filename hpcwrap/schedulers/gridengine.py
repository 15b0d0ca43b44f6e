"""Grid Engine: what execd leaves for a shepherd in its spool directory, in our words.

`shepherd_cmd` of sge_conf(5) is started there, for every job, array task and task of a parallel
job, without any of the user's variables.  The file ``config`` is execd's own; ``environment`` holds
variables of the user's, too, and is believed no more than any request is.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Dict, List, Mapping, NamedTuple, Optional, Tuple

from hpcwrap.config import Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import NO_LIMITS, Job, Limits, find_user
from hpcwrap.request import Request, harmless, make_request
from hpcwrap.schedulers import Commands, Launcher

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

user_namespace = True
"""The shepherd becomes the user before it starts anything of the job's."""

enforces_limits = False
"""Grid Engine holds single processes to h_vmem, and none to h_rss (setrlimit(2))."""

serves_pmi = False
"""It starts no ranks."""

COMPLEX = "container"
"""`-l container=NAME`: an attribute of the complex, which the filter turns into the variable."""

VARIABLE = "HPCWRAP_REQUEST"
"""The job's variable that carries the request to the nodes: NAME or NAME@DIGEST."""

OPTION = f"-l {COMPLEX}"

COMMANDS = (
    *("qsub", "qstat", "qdel", "qalter", "qhold", "qrls", "qresub", "qrsh", "qmod", "qhost"),
    *("qselect", "qquota", "qacct", "qconf", "qping"),
)
"""Grid Engine's commands that jobs call."""

LAUNCH = ("-inherit", "-V", "%h", "%c")
"""qrsh(1): a task of the parallel job on another of its nodes."""

LOGINS = ("QLOGIN", "QRLOGIN", "INTERACTIVE")
"""What `script_file` says, in any letters, where the shepherd starts a login shell or an xterm
itself (qlogin, bare qrsh, qsh)."""

DAEMONS = ("rsh_daemon", "rlogin_daemon", "qlogin_daemon")
BEFORE_DAEMONS = "queue_tmpdir"
"""Programs that shepherds start as root, and what execd writes before them, after all of a user's
words."""

SIZE = re.compile(r"([0-9]{1,18})([kKmMgGtT]?)")
FACTORS = {"": 1, **{x: 1000**n for n, x in enumerate("kmgt", 1)}}
FACTORS.update({x: 1024**n for n, x in enumerate("KMGT", 1)})
"""sge_types(5), memory_specifier."""


class Spool(NamedTuple):
    """A shepherd's directory: `config` as execd wrote it, `request` as the job's variables say."""

    directory: str
    config: Mapping[str, str]
    request: Optional[str]

    @property
    def job_id(self) -> str:
        """What names the job's directory: its number and that of its array task, or 0."""
        return f"gridengine-{self.number('job_id')}-{self.number('ja_task_id')}"

    @property
    def is_login(self) -> bool:
        """Whether the shepherd will start the user's login shell, past every starter."""
        return self.config.get("script_file", "").upper() in LOGINS

    @property
    def is_task(self) -> bool:
        """Whether it is a task of a parallel job, which `qrsh -inherit` started."""
        return "pe_task_id" in self.config

    def number(self, key: str) -> str:
        """A number of the configuration.  Raises SiteError."""
        text = self.config.get(key, "")
        if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
            raise SiteError(
                f"cannot read {key} in {self.directory}/config: {text or 'missing'}",
                "shepherd_cmd must start prolog/gridengine.sh (sge_conf(5))",
            )
        return text


def read_spool(directory: str) -> Spool:
    """Read what execd left.  Raises SiteError, or UserError for a job that forges lines of it."""
    return Spool(
        directory,
        read_config(os.path.join(directory, "config")),
        dict(read_pairs(os.path.join(directory, "environment"))).get(VARIABLE),
    )


def read_config(path: str) -> Dict[str, str]:
    """Read the shepherd's configuration.

    execd writes a job's paths as they are: a line feed in one makes a line of the user's, and
    shepherds have taken job_owner from it.  No such job starts.
    """
    found: Dict[str, str] = {}
    for name, value in read_pairs(path):
        if name in DAEMONS and BEFORE_DAEMONS not in found:
            raise UserError(
                f"cannot start the job: its configuration has {name} where execd writes none",
                "leave out the line feed in a path or a name",
            )
        if found.setdefault(name, value) != value:
            raise UserError(
                f"cannot start the job: its configuration has {name} twice",
                "leave out the line feed in a path or a name",
            )
    return found


def read_pairs(path: str) -> List[Tuple[str, str]]:
    """Lines NAME=VALUE of a file; its bytes need not be text: qrsh parts words by 0xFF.

    Raises SiteError.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            pairs = (line.rstrip("\n").partition("=") for line in file)
            return [(name, value) for name, _, value in pairs]
    except OSError as error:
        raise SiteError(f"cannot read {path}: {error.strerror}") from error


def read_prolog(environ: Mapping[str, str]) -> Tuple[Job, Request]:
    """Read the job and its request from the shepherd's directory, which is the working one.

    Raises SiteError when execd did not say enough.
    """
    spool = read_spool(os.getcwd())
    job = Job(
        id=spool.job_id,
        scheduler="gridengine",
        user=find_user(spool.config.get("job_owner") or "?"),
        workdir=spool.config.get("cwd", ""),
        node=os.uname().nodename,
        places=read_places(spool.config),
        nodes=max(1, len(read_hosts(spool))),
        limits=read_limits(spool.config),
        owners=(int(environ["HPCWRAP_SHEPHERD"]),) if "HPCWRAP_SHEPHERD" in environ else (),
    )
    return job, read_request(spool)


def read_places(config: Mapping[str, str]) -> Tuple[Tuple[str, str], ...]:
    """Where the job runs: its queue, and its project if it has one."""
    found = (("queue", config.get("queue", "")), ("project", config.get("acct_project", "")))
    return tuple((kind, name) for kind, name in found if name and name != "none")


def read_request(spool: Spool) -> Request:
    """Read the container asked for, by the filter's variable."""
    if not spool.request:
        return Request(None, "")
    return make_request(harmless(spool.request), OPTION)


def read_hosts(spool: Spool) -> List[str]:
    """The nodes of a parallel job, as far as this one knows them: the master knows all."""
    try:
        with open(os.path.join(spool.directory, "pe_hostfile"), encoding="ascii") as file:
            return list(dict.fromkeys(line.split()[0] for line in file if line.strip()))
    except (OSError, UnicodeDecodeError):
        return []


def read_limits(config: Mapping[str, str]) -> Limits:
    """What the job's processes may have together of this node's memory.

    A limit is for a slot (queue_conf(5), RESOURCE LIMITS), but not where it is requested as a
    consumable of the whole job (complex(5), JOB).
    """
    slots = config.get("host_slots", "")
    count = int(slots) if re.fullmatch(r"[0-9]{1,9}", slots, re.ASCII) else 1
    found = []
    for key in ("h_rss", "h_vmem"):
        size = read_size(config.get(key, ""))
        whole = config.get(f"{key}_is_consumable_job") == "1"
        found += [] if size is None else [size if whole else size * max(count, 1)]
    return Limits(memory=min(found)) if found else NO_LIMITS


def read_size(text: str) -> Optional[int]:
    """Bytes of a memory_specifier; None for INFINITY and whatever is none.

    >>> read_size("1.5G"), read_size("100M")
    (None, 104857600)
    """
    found = SIZE.fullmatch(text)
    return int(found.group(1)) * FACTORS[found.group(2)] if found else None


def read_gpus(_environ: Mapping[str, str]) -> Optional[Gpus]:
    """Grid Engine 8 gives no devices to jobs."""
    return None


def read_job_id(environ: Mapping[str, str]) -> str:
    """Read the job's id as epilog/gridengine.sh passes it on.  Raises SiteError."""
    text = environ.get("HPCWRAP_JOB", "")
    if not re.fullmatch(r"gridengine-[0-9]{1,10}-[0-9]{1,10}", text, re.ASCII):
        raise SiteError(f"cannot read HPCWRAP_JOB: {text or 'missing'}")
    return text


def own_mounts(_settings: Settings) -> Tuple[Mount, ...]:
    """Give what scripts and Grid Engine's commands need at the same paths inside.

    The spool directory as a whole: execd makes those of later tasks in it.
    """
    spool = read_spool(os.getcwd())
    execd = spool.directory.partition("/active_jobs/")[0]
    return (
        _bind(execd, "ro"),
        _bind(spool.config.get("tmpdir", ""), "rw"),
        *([_bind(root(), "ro")] if root() else []),
    )


def root() -> str:
    """$SGE_ROOT, as execd has it; empty where it does not."""
    return os.environ.get("SGE_ROOT", "")


def programs() -> str:
    """Where the commands are: beside execd, whose shepherd the hook becomes, too."""
    return os.environ.get("HPCWRAP_PROGRAMS", "")


def commands(_settings: Settings) -> Optional[Commands]:
    """Give those of the commands that this host has."""
    directory = programs()
    names = tuple(name for name in COMMANDS if os.access(f"{directory}/{name}", os.X_OK))
    return Commands(directory, names) if directory and names else None


def launcher(_settings: Settings, _environ: Mapping[str, str]) -> Optional[Launcher]:
    """Say how qrsh starts a task on another node of a parallel job."""
    spool, qrsh = read_spool(os.getcwd()), f"{programs()}/qrsh"
    if spool.config.get("pe", "none") == "none" or not os.access(qrsh, os.X_OK):
        return None
    hosts = () if spool.is_task else tuple(read_hosts(spool))
    return Launcher((qrsh, *LAUNCH), hosts)


def refuse_login() -> UserError:
    """The shepherd starts login shells itself, on the host, past every starter."""
    return UserError(
        "cannot log in to a job with a container: Grid Engine starts login shells on the host",
        "use `qrsh -pty y bash -l`",
    )


def set_starter(spool: Spool, program: str) -> None:
    """Have the shepherd start the job by a program, whatever the queue's starter_method is.

    So no queue can be forgotten, and jobs without a container keep the site's own.
    """
    from hpcwrap.record import publish

    path = os.path.join(spool.directory, "config")
    status = os.stat(path)
    pairs = {**read_config(path), "starter_method": program}
    text = "".join(f"{name}={value}\n" for name, value in pairs.items())
    publish(path, text.encode("utf-8", "surrogateescape"), status.st_mode & 0o777)
    os.chown(path, status.st_uid, status.st_gid)


def output(spool: Spool) -> Tuple[str, str]:
    """Where the job's errors go: a file, or a directory and the name of a file in it.

    As build_path of Grid Engine's shepherd has it; a directory is not told from a file here, for
    the path is the user's.  Empty for a terminal and the like.
    """
    config = spool.config
    kind, letter = ("stdout", "o") if config.get("merge_stderr") == "1" else ("stderr", "e")
    path = config.get(f"{kind}_path", "")
    task = config.get("ja_task_id", "0")
    name = f"{config.get('job_name', '')}.{letter}{config.get('job_id', '')}"
    return "" if path == "/dev/null" else path, name if task == "0" else f"{name}.{task}"


def _bind(path: str, access: str) -> Mount:
    return Mount(path, path, "bind", (access, "nofail"), "Grid Engine")
