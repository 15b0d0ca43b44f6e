"""Run a command of hpcwrap and kill it at a chosen moment; look at the store before and after.

A moment is an event: the Nth change that the command is about to make (a rename, an unlink, an
open for writing, a lock, a fork), counted by Python's audit hooks in the leader or in its helpers.
So the moments are spread over all that the command does, and the same seed means the same ones
on any machine.  What has no event of ours (skopeo, mksquashfs) is met by moments in seconds.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, NoReturn, Sequence, Set, Tuple

from hpcwrap import cli
from hpcwrap.errors import HpcwrapError
from hpcwrap.image.store import Store

CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "os.fork", "subprocess.Popen"),
    *("fcntl.flock", "fcntl.fcntl", "fcntl.lockf"),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATIENCE_S = 60
SUPERBLOCK = struct.Struct("<4s36xQ")
"""Magic and bytes_used of a squashfs, squashfs_fs.h."""


class Moment(NamedTuple):
    """Who is killed and when: `event` is the number of a change, else `seconds` count."""

    victim: str
    event: int = 0
    seconds: float = 0.0


NEVER = Moment("nobody")


class Ended(NamedTuple):
    """A command that has ended: its leader, exit code (negative: a signal), output and changes."""

    leader: int
    code: int
    output: str
    changes: Dict[str, int]
    seconds: float


Work = Callable[[], int]


def command(*words: str) -> Work:
    """A command line of hpcwrap's."""
    return lambda: cli.run(list(words))


def run(work: Work, log: Path, moment: Moment = NEVER) -> Ended:
    """Run it in a session of its own, killed at the moment, and wait for the leader's end."""
    counters = mmap.mmap(-1, 16)
    sys.stdout.flush()
    start = time.monotonic()
    leader = os.fork()
    if leader == 0:
        _lead(work, log, moment, counters)
    if moment.seconds:
        time.sleep(moment.seconds)
        _kill(leader, moment.victim)
    code = _wait(leader)
    changes = dict(zip(("leader", "helper"), struct.unpack("<QQ", counters[:16])))
    return Ended(leader, code, log.read_text(), changes, time.monotonic() - start)


def _lead(work: Work, log: Path, moment: Moment, counters: mmap.mmap) -> NoReturn:
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        _count_changes(moment, counters)
        code = work()
    except HpcwrapError as error:
        print(error.sentence())
        code = error.exit_code
    except BaseException:  # noqa: BLE001  nothing of pytest's may run here
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count_changes(moment: Moment, counters: mmap.mmap) -> None:
    leader = os.getpid()

    def hook(event: str, arguments: Tuple[object, ...]) -> None:
        if not _is_change(event, arguments):
            return
        who = "leader" if os.getpid() == leader else "helper"
        offset = 0 if who == "leader" else 8
        (count,) = struct.unpack_from("<Q", counters, offset)
        struct.pack_into("<Q", counters, offset, count + 1)
        if who == moment.victim and count + 1 == moment.event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _is_change(event: str, arguments: Tuple[object, ...]) -> bool:
    if event == "open":
        return bool(int(str(arguments[2])) & WRITING) and "__pycache__" not in str(arguments[0])
    return event in CHANGES


def _kill(leader: int, victim: str) -> None:
    try:
        (os.killpg if victim == "group" else os.kill)(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # not yet a leader, or gone


def _wait(child: int) -> int:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the command did not end within {PATIENCE_S} s")


class Reader:
    """A process that looks at the store all the time, as the prologs of other jobs do."""

    def __init__(self, store: Store, shapes: Dict[str, str], always: Sequence[str]) -> None:
        self.flag = mmap.mmap(-1, 1)
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            self._read(store, shapes, always, writing)
        os.close(writing)
        self.pipe = reading

    def _read(
        self, store: Store, shapes: Dict[str, str], always: Sequence[str], pipe: int
    ) -> NoReturn:
        found: Set[str] = {"it never looked"}
        try:
            found.clear()
            while True:
                last = self.flag[0]
                found.update(broken(store, shapes), missing(store, always))
                if last:
                    break
        except BaseException as error:  # noqa: BLE001  nothing of pytest's may run here
            found.add(repr(error))
        finally:
            os.write(pipe, "\n".join(sorted(found)).encode()[:60000])
            os._exit(0)

    def stop(self) -> List[str]:
        """End it after one more look; what it saw that nobody may see."""
        self.flag[0] = 1
        with os.fdopen(self.pipe) as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        return text.splitlines()


def broken(store: Store, shapes: Dict[str, str]) -> Iterable[str]:
    """Images that can be found and are not what they have to be; `shapes` is digest → sha256."""
    links, problems = store.links()
    yield from problems
    images, _ = store.images()
    by_reference = [store.find_digest(link.digest) for link in links]
    for image in (*images, *filter(None, by_reference)):
        try:
            content = Path(image.squashfs).read_bytes()
        except FileNotFoundError:
            continue  # removed since the look: a job that wants it holds a lease
        if hashlib.sha256(content).hexdigest() != shapes.get(image.digest):
            yield f"{image.digest} has a wrong squashfs of {len(content)} bytes"
        magic, used = SUPERBLOCK.unpack_from(content)
        if magic != b"hsqs" or used > len(content):
            yield f"{image.digest}: its superblock is wrong"


def missing(store: Store, always: Iterable[str]) -> Iterable[str]:
    """References that must be there whatever happens, and are not."""
    yield from (f"{text} is not there" for text in always if store.find(text) is None)


def left_over(store: Store) -> List[str]:
    """What a killed command may not leave behind for longer than the next one needs."""
    root = Path(store.root)
    found = [f"tmp: {name}" for name in os.listdir(store.tmp_directory)]
    found += [f"hidden: {path}" for path in root.rglob(".*")]
    stems: Dict[str, Set[str]] = {".json": set(), ".sqsh": set()}
    for path in Path(store.images_directory).iterdir():
        stems.setdefault(path.suffix, set()).add(path.stem)
    found += [f"half an image: {stem}" for stem in stems[".json"] ^ stems[".sqsh"]]
    found += [f"strange: {name}" for name in stems if name not in (".json", ".sqsh")]
    # A reference to an image that was evicted is none of these: the next job of it pulls it again.
    found += store.links()[1]
    work = [name for name in os.listdir(store.locks_directory) if name.startswith("pull-")]
    return found + [f"lock: {name}" for name in work] + _bad_blobs(root / "blobs")


def locks_of_nothing(store: Store) -> List[str]:
    """Files of locks, empty ones, whose image has gone: only gc takes these away."""
    names = os.listdir(store.locks_directory)
    images = {f"image-{digest[7:]}" for digest in store.digests()}
    return [name for name in names if name.startswith("image-") and name not in images]


def _bad_blobs(directory: Path) -> List[str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    right = [hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in files]
    return [f"a bad blob: {path}" for path, good in zip(files, right) if not good]


def processes_of(leader: int, directory: str) -> List[str]:
    """What still runs of a command: its session, and what works in the directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "stat").read_text().rpartition(")")[2].split()
            inside = os.readlink(process / "cwd").startswith(directory)
            if words[0] != "Z" and (int(words[3]) == leader or inside):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended
    return found


def eventually_none(look: Callable[[], List[str]], seconds: float = 10.0) -> List[str]:
    """Look until nothing is there; what is there at the end."""
    until = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def mounts(directory: str) -> List[str]:
    """Mounts in a directory (proc(5), mountinfo)."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in places if place.startswith(directory)]


def loops(directory: str) -> List[str]:
    """Loop devices over files of a directory."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue  # released since the listing
        if text.startswith(directory):
            found.append(f"{path.parts[3]}: {text}")
    return found
