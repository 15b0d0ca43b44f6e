"""A short piece of work with the rights of a user: in a child that is the user, with a time limit.

For what a user's own files and programs say; they may lie on a file system that hangs.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from contextlib import suppress
from typing import Any, Callable, Dict, NoReturn, Optional

from hpcwrap import run
from hpcwrap.errors import HpcwrapError, SiteError, UserError

MAX_ANSWER = 1 << 20
GRACE = 1.0
"""Seconds for a child to go after SIGKILL: one that the kernel holds is left to init."""

Work = Callable[[], Dict[str, Any]]


def as_user(
    identity: Optional[run.Identity], work: Work, seconds: float, purpose: str
) -> Dict[str, Any]:
    """Do `work` as `identity` (None: as ourselves) in a child in ``/``; it returns JSON.

    `purpose` begins the sentence when that fails: ``cannot get …``.  Raises the UserError that it
    raised, or SiteError when it took longer than `seconds` or was killed.
    """
    run.preload()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(identity, work, writer)
    os.close(writer)
    try:
        answer = json.loads(_all_of(reader, time.monotonic() + seconds))
    except TimeoutError:
        raise SiteError(
            f"{purpose}: it took longer than {seconds:g} s", "does the home directory hang?"
        ) from None
    except ValueError:
        raise SiteError(f"{purpose}: the process for it was killed", "is memory short?") from None
    finally:
        os.close(reader)
        _end(child)
    if "error" in answer:
        raise UserError(*answer["error"])
    return dict(answer["result"])


def _child(identity: Optional[run.Identity], work: Work, pipe: int) -> NoReturn:
    # The edge of this process: whatever happens, nothing of the parent's stack may run here.
    try:
        _become(identity, pipe)
        _send(pipe, {"result": work()})
    except HpcwrapError as error:
        _send(pipe, {"error": (error.message, error.hint)})
    finally:
        os._exit(0)


def _become(identity: Optional[run.Identity], pipe: int) -> None:
    os.setpgid(0, 0)  # a helper that it starts is to end with it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    gc.freeze()  # what the parent left open is not to be closed by a number that is used anew
    # The parent's locks and files are not the user's.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    os.umask(0o077)
    if identity is not None and os.geteuid() == 0:
        os.setgroups(list(identity.groups))
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)


def _send(pipe: int, message: Dict[str, Any]) -> None:
    with open(pipe, "wb") as file:
        file.write(json.dumps(message).encode())


def _all_of(reader: int, deadline: float) -> bytes:
    content = b""
    while len(content) <= MAX_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise TimeoutError
        more = os.read(reader, 1 << 16)
        if not more:
            return content
        content += more
    raise ValueError(len(content))


def _end(child: int) -> None:
    for kill in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    deadline = time.monotonic() + GRACE
    while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
