"""Building a container: a child makes the namespaces and mounts, its parent pins them.

parent                                   child (root, ends when the pins hold)
──────                                   ─────
                                         unshare the mount namespace  ◀─ again on the next
pin ns/mnt                               ...                             CPU while the pin fails
                                         execute the plan, pivot_root
                                         user namespace only: become the user, unshare
write the id maps, pin ns/user, ns/mnt   ...
                                         end
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, NoReturn, Tuple

from hpcwrap import errors, paths
from hpcwrap.container import namespaces, syscalls
from hpcwrap.container.operations import Findings, Note, Workshop
from hpcwrap.container.plan import Plan
from hpcwrap.environment import Variable
from hpcwrap.errors import HpcwrapError, NodeError, SiteError
from hpcwrap.run import start_time

PINNED, AGAIN, HOLD = b"p", b"a", b"h"

HOLDER = "hpcwrap-holder"
"""What the process calls itself that keeps namespaces which cannot be pinned."""

PATIENCE = 120
"""Seconds for a build, which takes milliseconds; whoever made the image has a say in what it reads,
and schedulers drain a node whose prolog does not end."""

KINDS = {kind.__name__: kind for kind in (errors.UserError, SiteError, NodeError)}


def build(plan: Plan, place: paths.JobPaths) -> Findings:
    """Build the container of a plan and pin it under the job's directory.

    Returns what the operations found in the image.  Raises HpcwrapError as the failing one has it;
    the child is gone then, and with it all that it mounted.
    """
    os.makedirs(place.stage, mode=0o700, exist_ok=True)
    os.makedirs(place.namespaces, mode=0o711, exist_ok=True)
    ours, theirs = _channel_pair()
    child = os.fork()
    if child == 0:
        ours.close()
        _run_child(plan, place, theirs)
    theirs.close()
    try:
        with _ended(child) as keep:
            return _serve_child(child, plan, place, ours, keep)
    finally:
        ours.close()


def release(place: paths.JobPaths) -> None:
    """Drop a job's pins and end its holder process; what is not there is fine."""
    for path in (place.mount_namespace, place.user_namespace):
        namespaces.unpin(path)
    _end_holder(place.holder)


class Channel:
    """One end of the talk between parent and child: JSON lines one way, single bytes the other.

    Two pipes: importing the module socket would cost the prolog 2 ms.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing

    def send(self, data: bytes) -> None:
        """Send all of it; messages are shorter than a pipe's buffer."""
        os.write(self._writing, data)

    def receive_byte(self) -> bytes:
        """Wait for an answer; empty when the other side is gone."""
        return os.read(self._reading, 1)

    def lines(self) -> Iterator[bytes]:
        """Messages until the other side is gone."""
        with open(self._reading, "rb", closefd=False) as file:
            yield from iter(file.readline, b"")

    def close(self) -> None:
        """Close both pipes."""
        os.close(self._reading)
        os.close(self._writing)


def _channel_pair() -> Tuple[Channel, Channel]:
    to_child, to_parent = os.pipe(), os.pipe()
    return Channel(to_parent[0], to_child[1]), Channel(to_child[0], to_parent[1])


# The parent's side


def _serve_child(
    child: int, plan: Plan, place: paths.JobPaths, channel: Channel, keep: List[int]
) -> Findings:
    """Answer the child's messages until it is built: one JSON document each."""
    for message in _messages(channel):
        if "error" in message:
            raise KINDS[message["error"]](message["message"], message["hint"])
        if "user" in message:
            _write_id_maps(child, plan)
            namespaces.pin(child, "user", place.user_namespace)
            channel.send(PINNED)
        if "mnt" in message:
            answer = _pin_mounts(child, place, last=message["last"], keep=keep)
            if answer == PINNED:
                namespaces.remember_cpu(place.good_cpu, message["cpu"])
            channel.send(answer)
        if "built" in message:
            variables, notes = message["built"]
            return Findings(tuple(Variable(*each) for each in variables), _notes(notes))
    raise SiteError(
        f"cannot build the container: the builder was killed, or not done after {PATIENCE} s",
        "is memory short, or the image's file system slow?",
    )


def _notes(words: Iterable[Iterable[str]]) -> Tuple[Note, ...]:
    return tuple(Note(*each) for each in words)


def _pin_mounts(child: int, place: paths.JobPaths, *, last: bool, keep: List[int]) -> bytes:
    """Pin the child's mount namespace; when no CPU makes one that can be, keep the child."""
    namespaces.unpin(place.mount_namespace)
    if namespaces.pin(child, "mnt", place.mount_namespace):
        return PINNED
    if not last:
        return AGAIN
    namespaces.unpin(place.mount_namespace)
    os.symlink(f"/proc/{child}/ns/mnt", place.mount_namespace)
    with open(place.holder, "w", encoding="ascii") as file:
        file.write(f"{child} {start_time(child)}\n")
    keep.append(child)
    return HOLD


def _write_id_maps(child: int, plan: Plan) -> None:
    """Map the user's uid and all its groups to themselves (user_namespaces(7))."""
    user = plan.user
    groups = "".join(f"{gid} {gid} 1\n" for gid in user.groups)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user.uid} {user.uid} 1\n"),
        ("gid_map", groups),
    ):
        fd = os.open(f"/proc/{child}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, text.encode())
        os.close(fd)


@contextmanager
def _ended(child: int) -> Iterator[List[int]]:
    """See the child end, by force on an error, unless it was put on the yielded list to stay."""
    keep: List[int] = []
    try:
        yield keep
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if child not in keep:
        os.waitpid(child, 0)


def _messages(channel: Channel) -> Iterator[Dict[str, Any]]:
    for line in channel.lines():
        yield json.loads(line)


# The child's side


def _run_child(plan: Plan, place: paths.JobPaths, channel: Channel) -> NoReturn:
    """Build and end; a process's edge: every failure is told to the parent."""
    try:
        _send(channel, built=_build_in_child(plan, place, channel))
    except HpcwrapError as error:
        _send(channel, error=type(error).__name__, message=error.message, hint=error.hint)
    except Exception as error:  # noqa: BLE001
        text = f"cannot build the container: {type(error).__name__}: {error}"
        _send(channel, error="SiteError", message=text, hint="please report this")
    finally:
        os._exit(0)


def _build_in_child(plan: Plan, place: paths.JobPaths, channel: Channel) -> Findings:
    os.setsid()
    signal.alarm(PATIENCE)
    workshop = Workshop(place.stage, plan.user, plan.image.attach(), plan.image.squashfs)
    if plan.user_namespace:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        _execute(plan, workshop)
        _enter_user_namespace(plan)
        _ask(channel, user=True)
        answer = _pinned_mount_namespace(channel, place.good_cpu)
    else:
        # Pinned before it is filled: trying again costs nothing then.
        answer = _pinned_mount_namespace(channel, place.good_cpu)
        _execute(plan, workshop)
    if answer == HOLD:
        _hold(channel, workshop.findings)
    return workshop.findings


def _pinned_mount_namespace(channel: Channel, cpu_memory: str) -> bytes:
    """Unshare on one CPU after the other until the parent can pin what came of it."""
    count = len(os.sched_getaffinity(0))
    for number, cpu in enumerate(namespaces.each_cpu(cpu_memory), start=1):
        syscalls.unshare(syscalls.CLONE_NEWNS)
        answer = _ask(channel, mnt=True, cpu=cpu, last=number == count)
        if answer != AGAIN:
            return answer
    raise NodeError("cannot pin a mount namespace on any CPU")


def _execute(plan: Plan, workshop: Workshop) -> None:
    # The host's mounts still come in (autofs), ours do not go out.
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    os.umask(0o022)
    for operation in plan.operations:
        try:
            operation.execute(workshop)
        except OSError as error:
            what = f" {error.filename}" if error.filename else ""
            raise SiteError(
                f"cannot make the {operation.describe()}: {error.strerror}{what}"
            ) from error


def _enter_user_namespace(plan: Plan) -> None:
    """Become the user for good, and make a user namespace that belongs to the user."""
    user = plan.user
    os.setgroups(list(user.groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    syscalls.set_no_new_privs()
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    except OSError as error:
        raise NodeError(
            f"cannot make a user namespace: {error.strerror}",
            "see /proc/sys/user/max_user_namespaces",
        ) from error


def _hold(channel: Channel, findings: Findings) -> NoReturn:
    """Tell that all is built, and stay as the process that keeps the namespaces, no file open."""
    signal.alarm(0)
    syscalls.set_process_name(HOLDER)
    # Changing the uid closed /proc/PID/ns to the user, who is to join by it (proc(5)).
    syscalls.set_dumpable()
    _send(channel, built=findings)
    os.closerange(0, 1024)
    while True:
        signal.pause()


def _ask(channel: Channel, **message: object) -> bytes:
    _send(channel, **message)
    answer = channel.receive_byte()
    if not answer:
        os._exit(1)  # the parent is gone: nobody wants this container any more
    return answer


def _send(channel: Channel, **message: object) -> None:
    channel.send(json.dumps(message).encode() + b"\n")


# Holder processes


def _end_holder(path: str) -> None:
    """End the holder that a file names, if the process with this number is still the same one."""
    try:
        with open(path, encoding="ascii") as file:
            process, started = file.read().split()
    except (OSError, ValueError):
        return
    if start_time(int(process)) == started:
        os.kill(int(process), signal.SIGKILL)
        _wait_gone(int(process), started)
    os.unlink(path)


def _wait_gone(process: int, started: str, limit: float = 2.0) -> None:
    until = time.monotonic() + limit
    while start_time(process) == started and time.monotonic() < until:
        time.sleep(0.005)
