"""Asking the helper: one line of JSON each way, over the socket that it is started by.

For programs that run as a job's user.  docs/decisions/0103 has the words of a message.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Dict, Mapping

from hpcwrap import paths
from hpcwrap.errors import NodeError, SiteError, UserError

LONGEST = 1 << 16
"""Bytes of one message, its newline included."""

DESCRIPTORS = "descriptors"
"""What of an answer are descriptors, which come beside it (unix(7), SCM_RIGHTS); inheritable."""

MOST_DESCRIPTORS = 4

KINDS = {kind.who: kind for kind in (UserError, SiteError, NodeError)}
START = "start hpcwrap-helper.socket on this node; `hpcwrap setup SCHEDULER` installs it"


def ask(message: Mapping[str, Any], path: str = paths.HELPER_SOCKET) -> Dict[str, Any]:
    """Send a message and wait for its answer, as long as a pull takes.

    Raises the helper's error as the helper had it; NodeError where there is no helper, SiteError
    where it ended without an answer.
    """
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LONGEST:
        raise UserError(f"cannot ask the helper: {len(line)} bytes are more than {LONGEST}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
        try:
            talk.connect(path)
        except OSError as error:
            raise NodeError(f"cannot reach the helper at {path}: {error.strerror}", START) from None
        answer = _exchange(talk, line)
    if "error" in answer:
        raise KINDS.get(answer.get("who", ""), SiteError)(answer["error"])
    return answer


def _exchange(talk: socket.socket, line: bytes) -> Dict[str, Any]:
    try:
        talk.sendall(line)
        said, descriptors, _, _ = socket.recv_fds(talk, LONGEST, MOST_DESCRIPTORS)
        with talk.makefile("rb") as reading:
            answer = json.loads(said if said.endswith(b"\n") else said + reading.readline(LONGEST))
        if isinstance(answer, dict):
            return {**answer, DESCRIPTORS: list(descriptors)}
    except (OSError, ValueError):
        pass
    raise SiteError("the helper ended without an answer", "see the log of hpcwrap-helper")
