"""The one room for subprocesses: argv lists, a built environment, errors that name the command.

Imports `subprocess` only inside the functions: the prolog of a warm job runs none, and the import
costs a third of its budget.
"""

from __future__ import annotations

import os
import shlex
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Mapping,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
)

from hpcwrap.errors import HpcwrapError, SiteError

if TYPE_CHECKING:
    from subprocess import Popen
    from typing import IO, Union

    Process = Popen[bytes]
    Stream = Union[int, IO[bytes], None]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = ("TERM", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")


class CommandError(HpcwrapError):
    """A command ended with another code than 0; keeps what it printed."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr = stderr
        super().__init__(f"{argv[0]} failed: {_ending(returncode)}: {last_line(stderr)}")


class Identity(NamedTuple):
    """Whom a child process becomes: numeric ids and all supplementary groups."""

    uid: int
    gid: int
    groups: Sequence[int] = ()


def find_program(*names: str) -> Optional[str]:
    """Full path of the first of the programs that is installed, or None."""
    for name in names:
        for directory in PATH.split(":"):
            path = os.path.join(directory, name)
            if os.access(path, os.X_OK):
                return path
    return None


def need_program(name: str, package: str) -> str:
    """Full path of a program that must be there.

    Raises SiteError naming the package to install.
    """
    path = find_program(name)
    if path is None:
        raise SiteError(f"cannot find the program {name}", f"install {package} on this host")
    return path


def base_environment(**more: str) -> Dict[str, str]:
    """The environment of every child: fixed PATH and locale, proxies and terminal passed on."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed, "PATH": PATH, "LANG": "C.UTF-8", **more}


def preload() -> None:
    """Import what starting a command needs: who becomes another user may be unable to read it."""
    import select  # noqa: F401
    import signal  # noqa: F401
    import subprocess  # noqa: F401


def spawn(
    argv: Sequence[str],
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[str] = None,
    identity: Optional[Identity] = None,
    pass_fds: Sequence[int] = (),
) -> Popen[bytes]:
    """Start a command without a shell; the caller waits for it.  stdin is /dev/null unless given.

    Raises SiteError when the command cannot be started.
    """
    import subprocess

    as_user: Any = _identity_arguments(identity)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(base_environment() if env is None else env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            **as_user,
        )
    except OSError as error:
        raise SiteError(f"cannot start {argv[0]}: {error.strerror}") from error


def wait_for_any(children: Iterable[Optional[Popen[bytes]]], seconds: float) -> None:
    """Wait until one of the children that were still running ends, at most so long.

    Who is to do something then does not sleep half a look's time for each (pidfd_open(2)).
    """
    import select

    running = [child.pid for child in children if child and child.returncode is None]
    ends = [os.pidfd_open(process) for process in running]
    try:
        select.select(ends, [], [], seconds)
    finally:
        for end in ends:
            os.close(end)


def output(
    argv: Sequence[str],
    *,
    env: Optional[Mapping[str, str]] = None,
    identity: Optional[Identity] = None,
    cwd: Optional[str] = None,
    timeout: Optional[float] = None,
) -> bytes:
    """Run a command to its end and return its stdout; timeout in seconds.

    Raises CommandError with its stderr, or SiteError when it takes too long.
    """
    import subprocess

    child = spawn(
        argv,
        env=env,
        identity=identity,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise SiteError(f"{shlex.join(argv)} did not end within {timeout:.0f} s") from None
    if child.returncode:
        raise CommandError(argv, child.returncode, stderr.decode(errors="replace"))
    return stdout


def detach(argv: Sequence[str], keep: int) -> None:
    """Start a command that outlives us and whoever waits for us, with the descriptor `keep`.

    It is nobody's child but init's, in a session of its own and without our descriptors: a
    scheduler waits until the pipes of a prolog are closed, and kills its process group.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _become_command(argv, keep)
    finally:
        os._exit(0)


def _become_command(argv: Sequence[str], keep: int) -> NoReturn:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(keep, True)
    os.chdir("/")
    execute(argv, base_environment())


def execute(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command (full path in argv[0])."""
    os.execve(argv[0], list(argv), dict(env))


def start_time(process: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is no such process.

    Number and start time together name a process for good (proc(5), stat, field 22).
    """
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def last_line(text: str) -> str:
    """The last line that says something: where programs put their error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _identity_arguments(identity: Optional[Identity]) -> Dict[str, object]:
    if identity is None or os.geteuid() != 0:
        return {}
    return {"user": identity.uid, "group": identity.gid, "extra_groups": list(identity.groups)}


def _ending(returncode: int) -> str:
    import signal

    if returncode >= 0:
        return f"exit code {returncode}"
    return f"killed by {signal.Signals(-returncode).name}"
