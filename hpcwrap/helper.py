"""The helper: the prolog's work for whoever calls, where a scheduler has no root hook for it.

systemd starts it for each connection of hpcwrap-helper.socket (Accept=yes), with the connection as
its stdin; it answers once and ends.  Nothing in a message is trusted: the user is the one whom the
kernel saw connecting (SO_PEERCRED, unix(7)), and that user's number ends the name of every
directory that is made, found or removed here.  docs/decisions/0103 has the words of a message.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from contextlib import suppress
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple, cast

from hpcwrap import epilog, owners, paths, prolog, record, schedulers, sweep
from hpcwrap.config import Settings
from hpcwrap.environment import Mount, parse_mount, target_key
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.helperclient import DESCRIPTORS, LONGEST
from hpcwrap.job import NO_LIMITS, Job, Limits, User, find_user
from hpcwrap.request import Request
from hpcwrap.textfile import read_text

PATIENCE = 10
"""Seconds in which the caller must have sent its message."""

MOST_CONTAINERS = 256
"""Of one user at the same time on one node: each takes a loop device and some memory of root's."""

GENERATIONS = 3
"""How far above the caller the process may be whose life is the container's."""

SO_PEERPIDFD = 77
"""Of asm-generic/socket.h, Linux 6.5; Python has no name for it."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", re.ASCII)
MOUNT_OPTIONS = frozenset(("ro", "rw", "bind", "rbind", "nofail"))
NOT_TO_COVER = ("/proc", "/sys", "/dev", "/.hpcwrap", "/.host")
"""What hpcwrap itself relies on inside."""

KEYS: Mapping[str, type] = {
    "do": str,
    "scheduler": str,
    "variables": dict,
    "mounts": list,
    "limits": dict,
    "above": int,
}


class Caller(NamedTuple):
    """Who is at the other end of the connection, as the kernel saw it."""

    user: User
    process: int
    held: int
    """A descriptor of the process (pidfd_open(2)): its number may be another's by now."""


class Asked(NamedTuple):
    """A message: `variables` are what the scheduler's adapter reads, `mounts` lines of fstab.

    `above` says whose life is the container's: 0 the caller's, 1 its parent's, and so on.
    """

    do: str
    scheduler: str = ""
    variables: Mapping[str, str] = {}
    mounts: Tuple[str, ...] = ()
    limits: Limits = Limits()
    above: int = 0


class Called:
    """A scheduler's adapter, with the mounts that the caller asked for beside its own."""

    def __init__(self, adapter: schedulers.CallerAdapter, mounts: Tuple[Mount, ...]) -> None:
        self._adapter = adapter
        self._mounts = mounts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def own_mounts(self, settings: Settings) -> Tuple[Mount, ...]:
        """The scheduler's, then the caller's, which are opened with the caller's rights."""
        return (*self._adapter.own_mounts(settings), *self._mounts)


def main() -> int:
    """Serve the connection on stdin: a process's edge; returns the exit code."""
    import socket

    # Whoever sends nothing is not waited for: the signal ends us.
    signal.alarm(PATIENCE)
    with socket.socket(fileno=os.dup(0)) as talk:
        answer = answer_to(talk)
        with suppress(OSError):
            line = json.dumps(answer).encode() + b"\n"
            socket.send_fds(talk, [line], answer.get(DESCRIPTORS, []))
    return 0


def answer_to(talk: Any) -> Dict[str, Any]:
    """Read one message and do what it says; errors are answers, too."""
    try:
        caller = find_caller(talk)
        with talk.makefile("rb") as reading:
            asked = read_message(reading.readline(LONGEST))
        signal.alarm(0)
        return VERBS[asked.do](caller, asked)
    except HpcwrapError as error:
        return {"error": error.sentence(), "who": error.who}
    except Exception as error:  # noqa: BLE001
        # A bug of ours: whoever asked for a container must not go on without.
        sys.excepthook(type(error), error, error.__traceback__)
        text = f"the helper failed: {type(error).__name__}: {error} (please report this)"
        return {"error": text, "who": SiteError.who}


# ---- the caller and the message ----


def find_caller(talk: Any) -> Caller:
    """Look up who connected.  Raises UserError for somebody whom this node does not know."""
    import socket
    import struct

    layout = struct.Struct("3i")  # struct ucred of unix(7)
    process, uid, _ = layout.unpack(
        talk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    )
    return Caller(find_user(str(uid)), process, hold(talk, process))


def hold(talk: Any, process: int) -> int:
    """A descriptor of the process that connected.  Raises UserError for one that is gone.

    Before Linux 6.5 it may be of another that has the number; `check_caller` sees whose.
    """
    import socket

    try:
        descriptor = talk.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int.from_bytes(descriptor, sys.byteorder)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise gone() from None
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        raise gone() from None


def check_caller(caller: Caller) -> None:
    """Raise UserError where the number of the caller is not, or may not be, the caller's any more.

    Otherwise all that was told of that number before was of the caller.
    """
    own = is_own(caller.process, caller)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(caller.held, 0)
        if own:
            return
    raise gone()


def gone() -> UserError:
    """A socket can be handed on, and the process that connected it end."""
    return UserError("cannot make a container: the process that asked for it is not there any more")


def read_message(line: bytes) -> Asked:
    """Read a message.  Raises UserError for one that is not as it should be."""
    try:
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        for key, value in document.items():
            if not isinstance(value, KEYS.get(key, ())):
                raise ValueError(f"{key} is not as it should be")
        if document.get("do") not in VERBS:
            raise ValueError(f"do is none of {', '.join(VERBS)}")
        return Asked(
            do=document["do"],
            scheduler=document.get("scheduler", ""),
            variables=read_texts(document.get("variables", {}).items()),
            mounts=tuple(read_texts(enumerate(document.get("mounts", ()))).values()),
            limits=read_limits(document.get("limits", {})),
            above=min(max(document.get("above", 0), 0), GENERATIONS),
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read the message to the helper: {error}") from None


def read_texts(pairs: Any) -> Dict[Any, str]:
    """Values that are texts as a process can have them.  Raises ValueError for others."""
    found = dict(pairs)
    for value in found.values():
        if not isinstance(value, str) or "\0" in value or "\n" in value:
            raise ValueError("a value is no text of one line")
    return found


def read_limits(document: Mapping[str, Any]) -> Limits:
    """Limits that are numbers above 0.  Raises ValueError for anything else."""
    kinds = {"memory": int, "cpus": (int, float), "pids": int}
    for name, value in document.items():
        if not isinstance(value, cast(Any, kinds.get(name, ()))) or not 0 < value < 1 << 60:
            raise ValueError(f"the limit {name} is not as it should be")
    return Limits(**document)


# ---- what can be asked for ----


def prepare(caller: Caller, asked: Asked) -> Dict[str, Any]:
    """Make the container, or find it made; null for a job without one."""
    adapter, job, request = read_job(caller, asked)
    job = job._replace(owners=(find_owner(caller, asked.above),))
    confined = is_confined(caller)
    check_caller(caller)
    if confined:
        job = job._replace(limits=NO_LIMITS)
    called = Called(adapter, read_mounts(asked.mounts))
    show_variables(adapter, asked.variables)
    note = json.dumps([request, asked.mounts, job.workdir, job.places]).encode()
    place = paths.JobPaths(job.id)
    sweep.sweep_quietly()
    with owners.alone(paths.HELPER_TURNS, job.id):
        if not (is_made(place, note) and owners.add(place, *job.owners)):
            check_number(caller.user)
            if not make(called, job, request, note):
                return {"directory": None}
    if not confined:
        join_limits(place, caller)
    return {"directory": place.directory}


def make(called: Called, job: Job, request: Request, note: bytes) -> bool:
    """Make a container; False when the job has none.  Nothing of it is left on an error."""
    watch = prolog.Stopwatch()
    try:
        made = prolog.prolog(job, request, cast(schedulers.Adapter, called))
        if made is None:
            return False
        record.publish(paths.JobPaths(job.id).asked, note, 0o600)
    except BaseException as error:
        epilog.epilog(job.id)
        if isinstance(error, HpcwrapError):
            prolog.report_failure(job, request, error.sentence(), watch)
        raise
    prolog.report(job, made, watch)
    return True


def find(caller: Caller, asked: Asked) -> Dict[str, Any]:
    """Find a container that was made, and hold the caller to its limits; null where there is none.

    Waits for one that is being made.  Its mount namespace goes along, for the pin of one is in no
    copy of the host's mounts, as the scheduler may have made one (mount(2), of bind mounts).
    """
    _, job, _ = read_job(caller, asked)
    place = paths.JobPaths(job.id)
    confined = is_confined(caller)
    with owners.alone(paths.HELPER_TURNS, job.id):
        if not os.path.exists(place.entry):
            return {"directory": None}
        if not confined:
            join_limits(place, caller)
    pin = os.open(place.mount_namespace, os.O_RDONLY | os.O_CLOEXEC)
    return {"directory": place.directory, DESCRIPTORS: [pin]}


def release(caller: Caller, asked: Asked) -> Dict[str, Any]:
    """Drop a container of the caller's, and tell which limits the job reached.

    One that is not there is fine.
    """
    _, job, _ = read_job(caller, asked)
    with owners.alone(paths.HELPER_TURNS, job.id):
        summary = epilog.epilog(job.id)
    if summary is None:
        return {"released": False}
    epilog.keep(summary)
    said = [summary[key] for key in ("oom", "pids", "lost_limits") if summary.get(key)]
    return {"released": True, "said": said}


def tidy(_caller: Caller, _asked: Asked) -> Dict[str, Any]:
    """Drop what is left of jobs whose processes are gone; anyone may ask for that."""
    sweep.sweep_quietly()
    return {"swept": True}


VERBS: Dict[str, Callable[[Caller, Asked], Dict[str, Any]]] = {
    "prepare": prepare,
    "find": find,
    "release": release,
    "sweep": tidy,
}


# ---- the steps ----


def read_job(caller: Caller, asked: Asked) -> Tuple[schedulers.CallerAdapter, Job, Request]:
    """The job as the scheduler's adapter reads it, made the caller's.

    Raises UserError for root, and for a scheduler whose jobs come by another way.
    """
    if caller.user.uid == 0:
        raise UserError("cannot make a container for root", "the helper is for jobs of users")
    adapter = schedulers.load(asked.scheduler)
    if not hasattr(adapter, "read_caller"):
        raise UserError(f"cannot make a container: {asked.scheduler} has root's own hooks for it")
    called = cast(schedulers.CallerAdapter, adapter)
    job, request = called.read_caller(asked.variables, caller.user)
    name = f"{job.id}-u{caller.user.uid}"
    if not JOB_ID.fullmatch(name) or not name.startswith(asked.scheduler + "-"):
        raise UserError(f"cannot make a container: {job.id!r} is no job's id")
    limits = lower(job.limits, asked.limits)
    return called, job._replace(id=name, user=caller.user, limits=limits), request


def lower(site: Limits, asked: Limits) -> Limits:
    """The lower of two limits each; None is none."""
    ours, theirs = site._asdict(), asked._asdict()
    chosen: Dict[str, Any] = {
        name: min((x for x in (ours[name], theirs[name]) if x is not None), default=None)
        for name in Limits._fields
    }
    return Limits(**chosen)


def find_owner(caller: Caller, above: int) -> int:
    """The process whose life is the container's: at most the first above that is not the user's.

    That is the scheduler's for the job; those above it outlive the job.
    """
    process = caller.process
    for _ in range(above):
        if not is_own(process, caller):
            break
        process = parent_of(process)
    return process if process > 1 else caller.process


def is_confined(caller: Caller) -> bool:
    """Whether somebody holds the caller in a cgroup: it is not that of who started the job.

    To be moved to one of ours would be a way out of it.
    """
    process = caller.process
    while process > 1 and is_own(process, caller):
        process = parent_of(process)
    texts = [read_text(f"/proc/{each}/cgroup") for each in (caller.process, process)]
    return texts[0] != texts[1] or not texts[0]


def is_own(process: int, caller: Caller) -> bool:
    """Whether a process is the caller's user's."""
    with suppress(OSError):
        return os.stat(f"/proc/{process}").st_uid == caller.user.uid
    return False


def parent_of(process: int) -> int:
    """The parent's number, 0 for a process that is gone (proc(5), stat, field 4)."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def read_mounts(lines: Tuple[str, ...]) -> Tuple[Mount, ...]:
    """The caller's own bind mounts.  Raises UserError for anything else."""
    mounts: List[Mount] = []
    for line in lines:
        try:
            mount = parse_mount(line, "the job")
        except SiteError as error:
            raise UserError(error.message, error.hint) from None
        if mount.type != "bind" or not MOUNT_OPTIONS.issuperset(mount.options) or "$" in line:
            raise UserError(f"cannot use the mount {line!r}: a job's own are binds")
        if any(f"{target_key(mount)}/".startswith(f"{path}/") for path in NOT_TO_COVER):
            raise UserError(f"cannot mount on {mount.target}: hpcwrap needs it as it is")
        mounts.append(mount)
    return tuple(mounts)


def show_variables(adapter: schedulers.CallerAdapter, variables: Mapping[str, str]) -> None:
    """Put into our environment what the adapter wants to find there, by name, and nothing else."""
    for name in adapter.CALLER_VARIABLES:
        if name in variables:
            os.environ[name] = variables[name]


def is_made(place: paths.JobPaths, note: bytes) -> bool:
    """True when the container is there, whole, and made for the same words."""
    try:
        with open(place.asked, "rb") as file:
            return file.read() == note and os.path.exists(place.entry)
    except OSError:
        return False


def check_number(user: User) -> None:
    """Raise UserError where a user has too many containers on this node."""
    with suppress(FileNotFoundError):
        own = [name for name in os.listdir(paths.JOBS) if name.endswith(f"-u{user.uid}")]
        if len(own) >= MOST_CONTAINERS:
            raise UserError(
                f"cannot make a container: {user.name} has {len(own)} on this node",
                "end some of your jobs",
            )


def join_limits(place: paths.JobPaths, caller: Caller) -> None:
    """Move the caller into the job's cgroup, where it has one: it will become the job."""
    if os.path.exists(place.cgroups):
        from hpcwrap.container import limits

        check_caller(caller)
        limits.join(place, caller.process)
        check_caller(caller)
