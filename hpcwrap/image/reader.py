"""The reader: what lies on this machine is read with the rights of the user who named it.

A child becomes that user, opens the path and sends the bytes through a pipe; a directory becomes
a tar stream, an image of Docker or Podman an archive.  Root never looks at a user's path, and a
file server or FUSE program that does not answer holds up the child alone: what reads the stream
only ever waits for a pipe, which a signal ends.  The user's symlinks are the user's affair.

The child says in a second pipe, as lines of JSON, what it found and how it ended.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import signal
import stat
import time
import traceback
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

from hpcwrap import run
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image.source import ENGINES, FILE, Source
from hpcwrap.image.worker import become, end_with, wide_pipe

OPEN_SECONDS = 30.0
"""How long a file server may take to open a path, and to close it."""
REAP_SECONDS = 1.0
"""How long what ended, or was killed, may take to say so."""
COPY = 8 << 20
MAX_LINE = 1 << 16

TAR = "tar"
SKOPEO_DIRECTORY = "dir"
OCI_ARCHIVE = "oci-archive"
DOCKER_ARCHIVE = "docker-archive"

DIRECTORIES = {"oci": OCI_ARCHIVE, "dir": SKOPEO_DIRECTORY, "rootfs": TAR}
"""Transports whose path is a directory → kind of the stream that comes of it."""

_OF_ROOT = ["--sparse", "--sparse-version=0.0", "--xattrs", "--xattrs-include=user.*"]
"""GNU tar's options for a root file system; 0.0 is the sparse format without tar's process id."""

_HARMLESS = ("socket ignored", "not dumped")
"""How tar's words end that are no errors."""
_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')

Tell = Callable[[Dict[str, Any]], None]


class _GoneError(SiteError):
    """The child says nothing any more, so that why is not known."""


class Stream(NamedTuple):
    """Bytes of an image: the reading end of a pipe, and what comes out of it.

    kind: TAR for a root file system, OCI_ARCHIVE, DOCKER_ARCHIVE, SKOPEO_DIRECTORY (a tar of such
    a layout), or FILE for a file, which is what its bytes show.  stamp: see `stamp_as`.  size: of
    a file in bytes, else 0.
    """

    pipe: int
    kind: str
    stamp: str
    size: int


@contextmanager
def open_as(
    user: Optional[run.Identity], source: Source, seconds: float = OPEN_SECONDS
) -> Iterator[Stream]:
    """Read a source as a user (None: ourselves) and pass its bytes to the with block.

    Raises UserError when the user may not read it or it is nothing to read, SiteError when it does
    not answer.  At the end of the block raises what went wrong while it was read, which then is
    the reason why nothing came of it.
    """
    child = _Child(user, source, whole=True)
    try:
        found = child.hear(seconds)
        try:
            yield Stream(child.pipe, found["kind"], found["stamp"], found["size"])
        except HpcwrapError:
            child.close_pipe()
            child.hear_error()
            raise
        child.hear(seconds)
    finally:
        child.end()


def stamp_as(user: Optional[run.Identity], source: Source, seconds: float = OPEN_SECONDS) -> str:
    """What changes when a file does: inode, size, times of change of data and inode in ns.

    Looked up as that user; raises as `open_as` does.  Empty for what is no single file.  The
    device is no part of it: its number for one file server differs from node to node (stat(2)).
    """
    child = _Child(user, source, whole=False)
    try:
        return str(child.hear(seconds)["stamp"])
    finally:
        child.end()


class _Child:
    """The process that is the user, and the two pipes that come from it."""

    def __init__(self, user: Optional[run.Identity], source: Source, *, whole: bool) -> None:
        self.source = source
        self.pipe, data = wide_pipe()
        self._words, words = os.pipe()
        life, self._life = os.pipe()
        if user is not None and os.geteuid() == 0:
            # skopeo opens /dev/stdout anew, for which the pipe has to be its user's (proc(5), fd).
            os.fchown(data, user.uid, user.gid)
        run.preload()
        self._number = os.fork()
        if self._number == 0:
            os.close(self._life)
            end_with(life)
            _run_child(user, source, whole, _Pipes(data, words, life))
        for descriptor in (data, words, life):
            os.close(descriptor)
        self._buffer = b""

    def hear(self, seconds: float) -> Dict[str, Any]:
        """The next thing that the child says.

        Raises what the child raised, SiteError when it says nothing.
        """
        line = self._line(time.monotonic() + seconds)
        message: Dict[str, Any] = json.loads(line) if line else {"broken": True}
        if "error" in message:
            kind = UserError if message["error"]["who"] == UserError.who else SiteError
            raise kind(message["error"]["message"], message["error"]["hint"])
        if "bug" in message:
            raise RuntimeError(f"in the process that reads {self.source}:\n{message['bug']}")
        if "broken" in message:
            raise _GoneError(f"cannot read {self.source}: the process that read it was killed")
        return message

    def hear_error(self) -> None:
        """Raise what went wrong in the child before its reader gave up, if anything did."""
        with suppress(_GoneError):
            self.hear(REAP_SECONDS)

    def close_pipe(self) -> None:
        """Read no more: the child ends when it writes."""
        if self.pipe >= 0:
            os.close(self.pipe)
        self.pipe = -1

    def end(self) -> None:
        """Kill what is left of it, and wait for it if that takes no time."""
        self.close_pipe()
        os.close(self._words)
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError):
                kill(self._number, signal.SIGKILL)
        os.close(self._life)
        self._reap(time.monotonic() + REAP_SECONDS)

    def _reap(self, deadline: float) -> None:
        # Not even SIGKILL ends a process that waits for a dead file server: init reaps it then.
        while os.waitpid(self._number, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.002)

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer and len(self._buffer) < MAX_LINE:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._words], [], [], left)[0]:
                raise _GoneError(
                    f"cannot read {self.source}: nothing answers",
                    "is its file system well on this node?",
                )
            more = os.read(self._words, MAX_LINE)
            if not more:
                return b""
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


class _Pipes(NamedTuple):
    """The child's ends: for the bytes, for its words, and the one that ends it with its parent."""

    data: int
    words: int
    life: int


def _run_child(
    user: Optional[run.Identity], source: Source, whole: bool, pipes: _Pipes
) -> NoReturn:
    def tell(message: Dict[str, Any]) -> None:
        os.write(pipes.words, json.dumps(message).encode() + b"\n")

    # The edge of this process: whatever happens, nothing of the parent's stack may run here.
    try:
        engine = source.transport in ENGINES
        become(None if engine else user, pipes)
        os.chdir("/")
        if engine:
            _read_engine(source, user, pipes.data if whole else None, tell)
        else:
            _read(source, whole, pipes.data, tell)
        tell({"end": True})
    except HpcwrapError as error:
        tell({"error": {"who": error.who, "message": error.message[:4000], "hint": error.hint}})
    except BrokenPipeError:
        tell({"broken": True})
    except BaseException:  # noqa: BLE001  the process ends here, see above
        tell({"bug": traceback.format_exc()[-8000:]})
    finally:
        os._exit(0)


def _read(source: Source, whole: bool, data: int, tell: Tell) -> None:
    descriptor, found = _open(source)
    if stat.S_ISDIR(found.st_mode):
        os.fchdir(descriptor)
        kind = _kind_of_directory(source)
        tell({"kind": kind, "stamp": "", "size": 0})
        if whole:
            _send_directory(source, kind, data)
        return
    tell({"kind": FILE, "stamp": _stamp(found), "size": found.st_size})
    if whole:
        _send_file(source, descriptor, data)


def _open(source: Source) -> Tuple[int, os.stat_result]:
    try:
        # Opening a device can do things, such as rewind a tape: look first.
        _check(source, os.stat(source.path))
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(source.path, flags)
        found = os.fstat(descriptor)
        _check(source, found)
        return descriptor, found
    except PermissionError:
        raise UserError(
            f"cannot read {source}: the uid {os.geteuid()} has no permission",
            "files are read with the rights of who names them",
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None


def _check(source: Source, found: os.stat_result) -> None:
    """Refuse what is no image whatever is in it."""
    wrong = _wrong_kind(source, found)
    if wrong:
        raise UserError(f"cannot read {source}: {wrong}")


def _wrong_kind(source: Source, found: os.stat_result) -> str:
    if found.st_dev in _kernel_devices():
        return "it is part of the kernel's /proc or /sys"
    if os.path.samestat(found, os.stat("/")):
        return "it is the root of the host"
    if stat.S_ISDIR(found.st_mode):
        allowed = source.transport in (FILE, *DIRECTORIES)
        return "" if allowed else f"it is a directory, which {source.transport}: does not take"
    if not stat.S_ISREG(found.st_mode):
        return "it is no file but a device, a pipe or a socket"
    if source.transport in DIRECTORIES:
        return f"it is a file, which {source.transport}: does not take"
    # A file that the kernel makes up has no size, wherever procfs is mounted.
    return "" if found.st_size else "it is empty"


def _kernel_devices() -> List[int]:
    devices = []
    for path in ("/proc", "/sys"):
        with suppress(OSError):
            devices.append(os.stat(path).st_dev)
    return devices


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _send_file(source: Source, descriptor: int, data: int) -> None:
    before = _stamp(os.fstat(descriptor))
    try:
        while os.sendfile(data, descriptor, None, COPY):
            pass
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None
    if _stamp(os.fstat(descriptor)) != before:
        raise UserError(f"cannot read {source}: it changed while it was read", "pull it again")


def _kind_of_directory(source: Source) -> str:
    """What the working directory holds."""
    found = TAR
    if os.path.isfile("oci-layout"):
        found = OCI_ARCHIVE
    elif os.path.isfile("manifest.json") and os.path.isfile("version"):
        found = SKOPEO_DIRECTORY
    wanted = DIRECTORIES.get(source.transport, found)
    if wanted not in (TAR, found):
        raise UserError(f"cannot read {source}: there is no such layout in it")
    if source.transport == FILE and found == TAR and not _is_root():
        raise UserError(
            f"cannot read {source}: it holds no image and no root file system",
            f"if it is one without /usr, /bin and /etc, write rootfs:{source.path}",
        )
    return wanted


def _is_root() -> bool:
    return any(os.path.lexists(name) for name in ("usr", "bin", "etc"))


def _send_directory(source: Source, kind: str, data: int) -> None:
    """Send the working directory as a tar stream: the same tree gives the same bytes."""
    argv = [run.need_program("tar", "tar"), "--create", "--file=-", "--sort=name"]
    argv += ["--numeric-owner", "--format=posix", "--one-file-system"]
    # Blobs are taken as plain files only; their links are followed here, with the user's rights.
    argv += _OF_ROOT if kind == TAR else ["--dereference", "--hard-dereference"]
    # Else tar's process id comes into names, and the times of the last access and of the inode's
    # change into records (tar.info, "Controlling Extended Headers").  The parts of a second go: a
    # squashfs keeps none, and each would cost a record.
    argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime,delete=mtime"]
    code, errors = _run([*argv, "."], data, run.base_environment())
    if code == 0:
        return
    lines = [line for line in errors.splitlines() if not line.endswith(_HARMLESS)]
    first = lines[0].partition(": ")[2] if lines else f"tar ended with {code}"
    if "Permission denied" in first:
        hint = (
            "it is read with your rights, an environment's as image_user; "
            "root can pack it: tar -c, then name that file"
        )
        raise UserError(f"cannot read {source}: {first}", hint)
    raise UserError(f"cannot read {source}: {first}", "pull it again, if it was changed just now")


def _read_engine(
    source: Source, user: Optional[run.Identity], data: Optional[int], tell: Tell
) -> None:
    """Send an image of the user's engine; this process is still root, where that was its parent."""
    tell({"kind": DOCKER_ARCHIVE, "stamp": "", "size": 0})
    if data is None:
        return
    name = f"{source.transport}:{source.reference.full if source.reference else ''}"
    argv = [*_contained(user), run.need_program("skopeo", "skopeo"), "copy", "--quiet", name]
    environment = _engine_environment(user.uid if user else os.geteuid())
    code, errors = _run([*argv, "docker-archive:/dev/stdout"], data, environment)
    if code:
        said = _MESSAGE.findall(errors)
        reason = said[-1].replace('\\"', '"') if said else run.last_line(errors)
        raise UserError(f"cannot read {source}: {reason[:1000]}")


def _contained(user: Optional[run.Identity]) -> List[str]:
    """The words before a command that is to be a user's, and takes all that it started with it.

    A user's storage.conf names programs (mount_program), which could leave the process group and
    live on, with no job and none of its limits; not so in a PID namespace (pid_namespaces(7)).
    """
    if user is None or os.geteuid() != 0:
        return []
    words = [run.need_program("unshare", "util-linux"), "--pid", "--fork", "--mount-proc", "--"]
    words += [run.need_program("setpriv", "util-linux")]
    groups = ",".join(map(str, user.groups))
    words += [f"--groups={groups}" if groups else "--clear-groups"]
    return [*words, f"--regid={user.gid}", f"--reuid={user.uid}", "--"]


def _engine_environment(uid: int) -> Dict[str, str]:
    """What leads skopeo to the storage of the user: without HOME it would take root's."""
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        raise SiteError(f"this node does not know the user with the uid {uid}") from None
    environment = run.base_environment(HOME=account.pw_dir, USER=account.pw_name)
    runtime = f"/run/user/{account.pw_uid}"
    if os.access(runtime, os.W_OK):
        environment["XDG_RUNTIME_DIR"] = runtime
    return environment


def _run(argv: List[str], data: int, environment: Dict[str, str]) -> Tuple[int, str]:
    """Run a command that writes the stream; its code and what it printed.

    Raises BrokenPipeError when nobody read the stream to its end.
    """
    log = os.memfd_create("errors")
    child = run.spawn(argv, stdout=data, stderr=log, env=environment)
    code = child.wait()
    errors = os.pread(log, MAX_LINE // 4, 0).decode(errors="replace")
    os.close(log)
    if code == -signal.SIGPIPE or (code and "roken pipe" in errors):
        raise BrokenPipeError
    return code, errors
