"""A child process that reads what a registry sent, with no more rights than that needs.

Everything that parses foreign bytes (skopeo, decompressors, our tar reader, mksquashfs) runs in a
forked child, which becomes the site's image user when we are root.  It tells its progress and its
result as lines of JSON in a pipe.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib  # noqa: F401  the worker's lazy import of it would come too late
import json
import os
import select
import signal
import time
import traceback
from contextlib import suppress
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
)

from hpcwrap import run
from hpcwrap.errors import DeniedError, HpcwrapError, SiteError, UserError, printable

ERRORS = {"denied": DeniedError, "user": UserError, "site": SiteError}
"""What a worker can raise in its parent, the most special first."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
STORE_FULL = "the store is full"
MAKE_ROOM = "make room: hpcwrap image gc, or hpcwrap rm"

MAX_LINE = 32 << 20
F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ has a name from Python 3.10 on
F_SETSIG = 10  # fcntl.F_SETSIG is there on Linux only, which mypy does not know


class Progress(NamedTuple):
    """How far a stage is: stage, what of it (a layer's digest), done and total in its own unit."""

    stage: str
    item: str
    done: int
    total: int


Report = Callable[[Progress], None]
Work = Callable[[Report], Dict[str, Any]]


def nothing() -> None:
    """Do nothing in the meantime."""


def work_as(
    identity: Optional[run.Identity],
    directory: str,
    work: Work,
    on_progress: Report,
    seconds: float,
    *,
    keep: Sequence[int] = (),
    meanwhile: Callable[[], None] = nothing,
) -> Dict[str, Any]:
    """Run `work` in a child process that is `identity` (None: ourselves), in `directory`.

    Of our descriptors it has those in `keep`.  Returns what it returned, which must be JSON.
    `meanwhile` is done here, and quickly, before anything is heard of it.
    Raises the HpcwrapError that it raised, or SiteError when it did not end within `seconds`.
    It ends when we end, however that comes, and all processes that it started end with it.
    """
    # The image user need not be able to read the interpreter's modules, nor ours.
    run.preload()
    reader, writer = os.pipe()
    life, ours = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        end_with(life)
        _child(identity, directory, work, writer, (life, *keep))
    os.close(writer)
    os.close(life)
    try:
        meanwhile()
        return _result(_lines(reader, time.monotonic() + seconds), on_progress)
    finally:
        os.close(reader)
        _end(child)
        os.close(ours)


def end_with(life: int) -> None:
    """Have the kernel kill us and our children as soon as nobody holds the pipe's other end.

    A pipe with O_ASYNC sends the signal of F_SETSIG to a process group when its last writer goes
    (fcntl(2)): that needs no thread and works after a change of user, unlike PR_SET_PDEATHSIG.
    """
    os.setpgid(0, 0)
    fcntl.fcntl(life, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:
        os._exit(1)  # the other end closed before the signal was set


def hold() -> None:
    """In a worker: have another process hold what we have open, until our parent ends us both.

    It waits for us alone: the kernel gives back the pages of gigabytes while the parent goes on.
    """
    if os.fork() == 0:
        while True:
            signal.pause()


def _end(child: int) -> None:
    # The child makes itself the leader of a group, which it may not have come to yet.
    for kill in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def guarded(argv: List[str]) -> List[str]:
    """A command that can gain no rights and ends when the process that started it ends."""
    setpriv = run.find_program("setpriv")
    if setpriv is None:
        return argv
    return [setpriv, "--no-new-privs", "--pdeathsig", "KILL", "--", *argv]


def wide_pipe() -> Tuple[int, int]:
    """A pipe for bulk data, reader and writer: of 1 MiB, so that the two seldom wait in turn."""
    reader, writer = os.pipe()
    # The site may allow less (pipe(7)): then it is slower.
    with suppress(PermissionError):
        fcntl.fcntl(writer, F_SETPIPE_SZ, 1 << 20)
    return reader, writer


def _child(
    identity: Optional[run.Identity], directory: str, work: Work, pipe: int, keep: Sequence[int]
) -> NoReturn:
    # The edge of this process: whatever happens, nothing of the parent's stack may run here.
    code = 1
    try:
        become(identity, (pipe, *keep))
        _go_to(directory)
        _send(pipe, {"result": work(lambda progress: _send(pipe, {"progress": progress}))})
        code = 0
    except HpcwrapError as error:
        told = {"kind": _kind(error), "message": error.message, "hint": error.hint}
        _send(pipe, {"error": told})
    except BaseException:  # noqa: BLE001  the process ends here, see above
        _send(pipe, {"bug": traceback.format_exc()})
    finally:
        os._exit(code)


def _kind(error: HpcwrapError) -> str:
    return next((name for name, kind in ERRORS.items() if isinstance(error, kind)), "site")


def become(identity: Optional[run.Identity], keep: Sequence[int]) -> None:
    """Turn a forked child into `identity` (None: ourselves), which has no descriptor but `keep`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # A file object that the parent left would close a number that is another file's by then.
    gc.freeze()
    # Locks of the parent must not live on in here: flock(2) belongs to the open file.
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            _close(int(name))
    os.umask(0o077)
    if identity is not None and os.geteuid() == 0:
        os.setgroups(list(identity.groups))
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)


def _go_to(directory: str) -> None:
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise SiteError(
            f"cannot work in {directory} as the uid {os.geteuid()}",
            "make the directories above the store searchable: chmod o+x",
        )
    os.chdir(directory)


def _close(number: int) -> None:
    try:
        os.close(number)
    except OSError:
        return  # the descriptor that listed the directory


def _send(pipe: int, message: Dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]


def _lines(reader: int, deadline: float) -> Iterator[bytes]:
    buffer = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise SiteError(
                "stopped pulling the image: it took longer than the site allows",
                "see the setting pull_timeout",
            )
        data = os.read(reader, 1 << 16)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        yield from lines
        if len(buffer) > MAX_LINE:
            raise SiteError("stopped pulling the image: its helper process talks nonsense")


def _result(lines: Iterator[bytes], on_progress: Report) -> Dict[str, Any]:
    for line in lines:
        message = json.loads(line)
        if "progress" in message:
            stage, item, done, total = message["progress"]
            on_progress(Progress(stage, printable(item), done, total))
        elif "error" in message:
            told = message["error"]
            raise ERRORS[told["kind"]](told["message"], told["hint"])
        elif "bug" in message:
            raise RuntimeError(f"in the process that converts images:\n{message['bug']}")
        else:
            return dict(message["result"])
    raise SiteError("cannot pull the image: its helper process was killed", "is memory short?")
