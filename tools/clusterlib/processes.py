"""Finds the process 1 of each node, and runs commands inside nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Callable, Mapping, NamedTuple, Optional, Sequence

from clusterlib import syscalls
from clusterlib.errors import ToolError
from clusterlib.layout import ROOT_PATH, USER_PATH, User

INIT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "init.py")
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class Holder(NamedTuple):
    """A running init.py: process 1 of a node, or the parent that is about to leave it alone."""

    pid: int
    node: str
    compute_nodes: int
    lower_root: str
    scheduler: str
    inside: bool


class Identity(NamedTuple):
    """Whom a command runs as, and what it finds there."""

    uid: int
    gids: Sequence[int]
    home: str
    environment: Mapping[str, str]


def holders(state: str) -> list[Holder]:
    """All processes that hold nodes of the cluster in `state`, known by their command line.

    The process table is the only register: a file could be missing after a crash, or stale.
    """
    found = []
    for name in os.listdir("/proc"):
        holder = _holder(int(name), state) if name.isdigit() else None
        if holder:
            found.append(holder)
    return found


def lower_roots() -> set[str]:
    """The trees that nodes of any cluster are over."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {words[5] for words in map(_words_of_holder, pids) if words}


def _holder(pid: int, state: str) -> Optional[Holder]:
    words = _words_of_holder(pid)
    if not words or words[3] != state:
        return None
    return Holder(pid, words[7], int(words[4]), words[5], words[6], _is_process_one(pid))


def _words_of_holder(pid: int) -> list[str]:
    """The command line of a root's init.py; empty for any other process."""
    words = command_line(pid)
    if len(words) != 8 or words[1] != "-I":
        return []
    ours = os.path.basename(words[2]) == os.path.basename(INIT) and _is_root(pid)
    return words if ours else []


def command_line(pid: int) -> list[str]:
    """The words of a process's command line; none for a zombie or a process that is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_root(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == 0
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_process_one(pid: int) -> bool:
    """Whether `pid` is number 1 of a PID namespace below ours (NSpid, proc_pid_status(5))."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            numbers = [line.split()[1:] for line in file if line.startswith("NSpid:")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(numbers) and len(numbers[0]) > 1 and numbers[0][-1] == "1"


def node_pid(state: str, node: str) -> int:
    """The process 1 of a node, as a number of this PID namespace.

    Raises ToolError when the node is not there.
    """
    there = {holder.node: holder.pid for holder in holders(state) if holder.inside}
    if node in there:
        return there[node]
    if there:
        names = ", ".join(sorted(there))
        raise ToolError(f"cannot reach node {node}: this cluster has {names}")
    raise ToolError(
        f"cannot reach node {node}: no cluster is up in {state} (start one: tools/cluster up)"
    )


def run_in(pid: int, argv: Sequence[str], *, check: bool = True) -> str:
    """Run a command as root in the node whose process 1 is `pid`; its standard output.

    Raises ToolError with the command's last words when it fails and `check` is set.
    """
    environment = {**root_identity().environment, **_node_variables(pid)}
    return _run([*_into_node(pid), *argv], environment, name=argv[0], check=check)


def run_in_network(pid: int, argv: Sequence[str], *, text: str) -> None:
    """Run a command of this machine in the network namespace of `pid` only, `text` its input."""
    into = ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]
    _run([*into, *argv], root_identity().environment, name=argv[0], text=text)


def start_in(pid: int, argv: Sequence[str], log: str) -> None:
    """Start a daemon in a node with its output in the file `log` of the node."""
    environment = {**root_identity().environment, **_node_variables(pid)}
    with open(f"/proc/{pid}/root{log}", "ab") as output:
        done = subprocess.run(
            [*_into_node(pid), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            check=False,
        )
    if done.returncode != 0:
        raise ToolError(f"cannot start {argv[0]}: exit code {done.returncode}")


def _into_node(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]


def _run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    name: str,
    text: str = "",
    check: bool = True,
) -> str:
    done = subprocess.run(
        argv, input=text, capture_output=True, text=True, env=environment, check=False
    )
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ToolError(f"cannot run {name}: {words} (exit code {done.returncode})")
    return done.stdout


def root_identity() -> Identity:
    """Root, with the environment of a root login."""
    return Identity(0, [0], "/root", _login_environment("root", "/root", ROOT_PATH))


def user_identity(user: User) -> Identity:
    """A user of the cluster, with the environment of a login."""
    environment = _login_environment(user.name, user.home, USER_PATH)
    return Identity(user.uid, user.gids, user.home, environment)


def _login_environment(name: str, home: str, path: str) -> dict[str, str]:
    return {
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "SHELL": "/bin/bash",
        "PATH": path,
        "TERM": os.environ.get("TERM", "dumb"),
        "LANG": "C.UTF-8",
    }


def _node_variables(pid: int) -> dict[str, str]:
    """What a login finds in its environment on a node: its /etc/environment."""
    with open(f"/proc/{pid}/root/etc/environment", encoding="utf-8") as file:
        pairs = (line.strip().partition("=") for line in file)
        return {name: value for name, sign, value in pairs if sign}


def enter(pid: int, argv: Sequence[str], identity: Identity) -> int:
    """Run a command in a node with our own stdin, stdout, stderr and terminal; its exit code.

    Two processes, because setns(2) puts only children into a PID namespace.  The first stays
    outside and passes signals on; if it is killed, the kernel kills the second.
    """
    environment = {**identity.environment, **_node_variables(pid)}
    fd = os.pidfd_open(pid)
    syscalls.setns(fd, syscalls.NODE_NAMESPACES)
    child = os.fork()
    if child == 0:
        _become(argv, identity._replace(environment=environment))
    _pass_signals_on_to(child)
    return exit_code(os.waitpid(child, 0)[1])


def _become(argv: Sequence[str], identity: Identity) -> None:
    """Turn this process into the command; leaves with a shell's exit codes if that fails."""
    try:
        os.setgroups(identity.gids)
        os.setresgid(*[identity.gids[0]] * 3)
        os.setresuid(*[identity.uid] * 3)
        syscalls.set_parent_death_signal(signal.SIGKILL)
        os.chdir(identity.home)
        os.execvpe(argv[0], list(argv), dict(identity.environment))
    except OSError as error:
        os.write(2, f"cannot run {argv[0]}: {error.strerror}\n".encode())
        missing = isinstance(error, FileNotFoundError)
        os._exit(EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE)


def _pass_signals_on_to(child: int) -> None:
    """Forward what is sent to us; what a terminal sends reaches the child by itself."""
    for number in PASSED_ON:
        signal.signal(number, lambda signum, _: os.kill(child, signum))
    for number in (signal.SIGINT, signal.SIGQUIT):
        if _in_foreground():
            signal.signal(number, signal.SIG_IGN)
        else:
            signal.signal(number, lambda signum, _: os.kill(child, signum))


def _in_foreground() -> bool:
    """Whether a terminal's Ctrl-C reaches us, and so the child too."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


def exit_code(status: int) -> int:
    """A wait status as a shell would say it: 128 + the signal for a killed child."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask again and again until `condition` holds.

    Raises ToolError saying `what` did not happen within `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ToolError(f"cannot go on: {what} within {seconds:.0f} s")
        time.sleep(0.02)
