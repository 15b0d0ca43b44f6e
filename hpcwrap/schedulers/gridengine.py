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

LOGINS = {"QLOGIN": "qlogin_daemon", "QRLOGIN": "rlogin_daemon"}
"""What `script_file` says, in any letters, of qlogin and of qrsh without a command; and whose value
says how such a shell is started."""

TERMINAL = "INTERACTIVE"
"""What it says of qsh, for which the shepherd starts an xterm on the host."""

BUILTIN = "builtin"
"""The daemon that is none: the shepherd itself talks to the client (sge_conf(5))."""

UNSET = "2"
"""`pty` where nobody said -pty."""

COMMAND, WRAPPER = b"QRSH_COMMAND=", b"QRSH_WRAPPER="
"""Variables for qrsh_starter: what to start, and a program to start in the starter's place."""

DAEMONS = ("rsh_daemon", "rlogin_daemon", "qlogin_daemon")
BEFORE_DAEMONS = "queue_tmpdir"
"""Programs that shepherds start as root, and what execd writes before them, after all of a user's
words."""

LONGEST = 99_998
"""Shepherds read their configuration by fgets(3) with 100 000 bytes: the rest is another line."""

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
    def kind(self) -> str:
        """What `script_file` says, in capitals: a path or a word for what has no script."""
        return self.config.get("script_file", "").upper()

    @property
    def is_login(self) -> bool:
        """Whether the shepherd would start the user's login shell itself, past every starter."""
        return self.kind in LOGINS

    @property
    def is_outside(self) -> bool:
        """Whether what the shepherd will start cannot be brought into a container."""
        daemon = self.config.get(LOGINS.get(self.kind, ""), "")
        return self.kind == TERMINAL or (self.is_login and daemon.lower() != BUILTIN)

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
        read_variables(os.path.join(directory, "environment")).get(VARIABLE),
    )


def read_config(path: str) -> Dict[str, str]:
    """Read the shepherd's configuration.

    execd writes a job's paths as they are: a line feed in one makes a line of the user's, and
    shepherds have taken job_owner from it.  No such job starts.
    """
    found: Dict[str, str] = {}
    for line in read_lines(path):
        name, value = split_line(line)
        if not name:
            raise refuse_forged("a line where execd writes none")
        if len(line) > LONGEST:
            raise refuse_forged(f"a line of {name} that shepherds take for two")
        if name in DAEMONS and BEFORE_DAEMONS not in found:
            raise refuse_forged(f"{name} where execd writes none")
        if found.setdefault(name, value) != value:
            raise refuse_forged(f"{name} twice")
    return found


def split_line(line: bytes) -> Tuple[str, str]:
    """A line's name and value, as the shepherd takes them apart: by a space, too.

    >>> split_line(b" job_owner bob")
    ('job_owner', 'bob')
    """
    name, _, value = re.sub(b"[ =]", b"=", line.lstrip(b" ="), count=1).partition(b"=")
    return os.fsdecode(name), os.fsdecode(value)


def refuse_forged(what: str) -> UserError:
    """Say what of the configuration is not execd's."""
    return UserError(
        f"cannot start the job: its configuration has {what}",
        "leave out line feeds in paths and names, and words of 100 000 letters",
    )


def read_variables(path: str) -> Dict[str, str]:
    """Read the job's variables as the shepherd is to set them."""
    pairs = (line.partition(b"=") for line in read_lines(path))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def read_lines(path: str) -> List[bytes]:
    """Lines of a file; its bytes need not be text: qrsh parts words by 0xFF.  Raises SiteError."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise SiteError(f"cannot read {path}: {error.strerror}") from error
    lines = text.split(b"\n")
    return lines if lines[-1] else lines[:-1]


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
    """What qsh starts, or a login daemon of the site's, is on the host, past every starter."""
    return UserError(
        "cannot log in to a job with a container: Grid Engine would start this on the host",
        "use qlogin or qrsh, with qlogin_daemon and rlogin_daemon builtin (sge_conf(5))",
    )


def set_starter(spool: Spool, program: str) -> None:
    """Have the shepherd start the job by a program, whatever the queue's starter_method is.

    So no queue can be forgotten, and jobs without a container keep the site's own.  A login is made
    a command: only that passes a starter.
    """
    changes = {**(as_command(spool.config) if spool.is_login else {}), "starter_method": program}
    config = os.path.join(spool.directory, "config")
    pairs = {**read_config(config), **changes}
    rewrite(config, [os.fsencode(f"{name}={value}") for name, value in pairs.items()])
    environment = os.path.join(spool.directory, "environment")
    lines = read_lines(environment)
    wanted = [line for line in lines if not line.startswith(WRAPPER)]
    if spool.is_login:
        wanted = [line for line in wanted if not line.startswith(COMMAND)]
        shell = find_user(spool.config["job_owner"]).shell
        wanted.append(COMMAND + login_command(shell).encode("ascii"))
    if wanted != lines:
        rewrite(environment, wanted)


def as_command(config: Mapping[str, str]) -> Dict[str, str]:
    """What is to change in a login's configuration: the shepherd takes it for `qrsh COMMAND`.

    What execd writes for one beside the rest (exec_job.c); with the terminal that a login has.
    """
    directory = config.get("tmpdir", "")
    return {
        "script_file": "QRSH",
        "rsh_daemon": BUILTIN,
        "qrsh_tmpdir": directory,
        "qrsh_pid_file": f"{directory}/pid",
        "pty": "1" if config.get("pty", UNSET) == UNSET else config["pty"],
    }


def login_command(shell: str) -> str:
    """A line for sh that becomes the user's own shell where the image has it.

    No login shell: /etc/profile of many images sets PATH anew, without the image's own.
    """
    own = shell if re.fullmatch(r"/[\w./+-]+", shell, re.ASCII) else "/bin/sh"
    return f"SHELL={own}; [ -x $SHELL ] || SHELL=/bin/sh; export SHELL; exec $SHELL"


def rewrite(path: str, lines: List[bytes]) -> None:
    """Write a file of execd's anew, as its owner's."""
    from hpcwrap.record import publish

    status = os.stat(path)
    publish(path, b"".join(line + b"\n" for line in lines), status.st_mode & 0o777)
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
