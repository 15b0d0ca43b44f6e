"""Locks of the store and the directories in which pulls work.

All locks are flock(2): the kernel gives them back when their holder ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import IO, Callable, Iterator, List, Optional, cast

from hpcwrap import run
from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.store import Store

HIDDEN = ".removing"
"""How the document of an image ends while it is removed (remove.py)."""

MAX_NODE_NAME = 64

FIRST_WAIT = 0.05
LAST_WAIT = 2.0
GROWTH = 1.5
"""Seconds between two looks at a lock that another holds: few at first, then at ease, because
thousands of nodes may look at one server's lock."""


class BusyError(SiteError):
    """Another holds a lock for longer than we would wait."""


def ensure_store(store: Store) -> None:
    """Make the store's directories where they are missing.

    Raises UserError for a user who may not write there, SiteError for other reasons.
    """
    modes = {
        store.root: 0o755,
        store.images_directory: 0o755,
        store.refs_directory: 0o755,
        store.leases_directory: 0o755,
        # Whoever can open a lock's file can hold the lock: only the store's owner may.
        store.locks_directory: 0o700,
        # Searchable, so that the image user comes to its own directory, and closed otherwise.
        store.tmp_directory: 0o711,
    }
    for directory, mode in modes.items():
        make_directory(store, directory, mode)


def make_directory(store: Store, directory: str, mode: int) -> None:
    """Make one of the store's directories if it is missing.

    Raises UserError for a user who may not write there, SiteError for other reasons.
    """
    try:
        if not os.path.isdir(directory):
            os.makedirs(directory, exist_ok=True)
            os.chmod(directory, mode)
    except PermissionError as error:
        raise _no_permission(store, error) from None
    except OSError as error:
        raise SiteError(f"cannot make the store {store.root}: {error.strerror}") from None


@contextmanager
def locked(
    store: Store, name: str, seconds: float, on_wait: Optional[Callable[[str], None]] = None
) -> Iterator[bool]:
    """Hold the lock of that name; yields whether somebody else held it before.

    on_wait is called once when it is not free, with the name of the node whose it is, "" if that
    is not known.  Raises SiteError after `seconds`.
    """
    lock = _Lock(store, name)
    try:
        yield lock.wait(seconds, on_wait or _nothing, _never)
    finally:
        lock.close()


@contextmanager
def locked_unless(
    store: Store,
    name: str,
    seconds: float,
    arrived: Callable[[], bool],
    on_wait: Optional[Callable[[str], None]] = None,
) -> Iterator[bool]:
    """Hold the lock of that name, unless what its holder makes is there before; yields whether.

    arrived() is asked while another holds the lock: those who wait need not queue for it one
    after the other.  Raises SiteError after `seconds`.
    """
    lock = _Lock(store, name)
    try:
        lock.wait(seconds, on_wait or _nothing, arrived)
        yield lock.held
    finally:
        lock.close()


@contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """A new file beside `path`, to be renamed to it; it goes with the with block if it is not.

    It is locked while its writer lives: so everyone on every node can tell what was left.
    """
    with _new_locked(*os.path.split(path)) as file:
        try:
            yield file
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file.name)


def _new_locked(directory: str, name: str) -> IO[bytes]:
    while True:
        prefix = f".{name[:100]}."
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115  the caller closes it
            dir=directory, prefix=prefix, delete=False
        )
        # Who looks for leftovers may have taken it before it was locked.
        if _try_lock(file.fileno(), file.name) and _has_name(file.fileno()):
            return cast("IO[bytes]", file)
        file.close()


@contextmanager
def workspace(store: Store, identity: Optional[run.Identity], seconds: float) -> Iterator[str]:
    """A new directory in STORE/tmp that belongs to `identity`; it goes with the with block.

    Directories that killed pulls left are removed first.
    """
    with locked(store, "tmp.lock", seconds):
        remove_leftovers(store)
        directory = tempfile.mkdtemp(prefix="pull-", dir=store.tmp_directory)
        descriptor = _open_lock(store, directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        if identity is not None:
            os.chown(directory, identity.uid, identity.gid)
        yield directory
    finally:
        remove_tree(directory)
        _drop_lock(store, directory)
        os.close(descriptor)


def remove_tree(directory: str) -> None:
    """Remove a directory in which a worker was, whatever it made there, as far as that goes."""
    with suppress(RecursionError):
        shutil.rmtree(directory, ignore_errors=True)
    if os.path.lexists(directory):
        # Python goes a thousand directories deep and no further, rm as deep as there are any.
        with suppress(run.CommandError):
            run.output([run.need_program("rm", "coreutils"), "-rf", "--", directory])


def _open_lock(store: Store, directory: str) -> int:
    """Open the lock of a workspace: a file, because NFS keeps locks of directories to itself."""
    path = os.path.join(store.locks_directory, os.path.basename(directory))
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _drop_lock(store: Store, directory: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(store.locks_directory, os.path.basename(directory)))


def remove_leftovers(store: Store) -> None:
    """Remove what killed writers left; the caller holds tmp.lock."""
    for path in leftovers(store):
        remove_leftover(store, path)


def leftovers(store: Store) -> List[str]:
    """What may have been left: directories in STORE/tmp, and files under their first name."""
    tmp = os.scandir(store.tmp_directory)
    found = [item.path for item in tmp if item.is_dir(follow_symlinks=False)]
    for directory in (store.images_directory, store.refs_directory):
        found += [item.path for item in os.scandir(directory) if is_first_name(item.name)]
    return found


def remove_leftover(store: Store, path: str) -> bool:
    """Remove what leftovers() found unless its writer lives; the caller holds tmp.lock."""
    if os.path.dirname(path) == store.tmp_directory:
        return _remove_unlocked(store, path)
    return _remove_ownerless(path)


def is_first_name(name: str) -> bool:
    """Whether new_file() made a name; .nfs… is a server's name for what is still open there."""
    hidden = name.startswith(".") and not name.startswith(".nfs")
    return hidden and not name.endswith(HIDDEN)


def is_left(store: Store, path: str) -> bool:
    """Whether nobody works any more on what leftovers() found."""
    if os.path.dirname(path) != store.tmp_directory:
        return is_free(path)
    lock = os.path.join(store.locks_directory, os.path.basename(path))
    return is_free(lock) or not os.path.exists(lock)


def is_free(path: str) -> bool:
    """Whether a lock's file is there and nobody holds the lock."""
    try:
        descriptor = os.open(path, _lock_flags())
    except OSError:
        return False
    try:
        return _try_lock(descriptor, path)
    finally:
        os.close(descriptor)


def remove_lock(store: Store, name: str) -> bool:
    """Remove the file of a lock that nobody holds; whether that was so.

    Safe while others come for it: who gets a lock whose file has gone takes a new one (_Lock).
    """
    return _remove_ownerless(os.path.join(store.locks_directory, name))


def _remove_unlocked(store: Store, directory: str) -> bool:
    descriptor = _open_lock(store, directory)
    try:
        if not _try_lock(descriptor, directory):
            return False  # a pull works there
        remove_tree(directory)
        _drop_lock(store, directory)
        return True
    finally:
        os.close(descriptor)


def _remove_ownerless(path: str) -> bool:
    try:
        descriptor = os.open(path, _lock_flags())
    except OSError:
        return False
    try:
        if not _try_lock(descriptor, path) or not _has_name(descriptor):
            return False
        os.unlink(path)
        return True
    except FileNotFoundError:
        return False  # renamed to what it was to become
    finally:
        os.close(descriptor)


def _lock_flags() -> int:
    # An NFS client gives an exclusive lock to what is open for writing only (flock(2), "NFS
    # details"); who is not root cannot open a file of mode 0444 so.
    mode = os.O_RDWR if os.geteuid() == 0 else os.O_RDONLY
    return mode | os.O_CLOEXEC | os.O_NOFOLLOW


class _Lock:
    """A lock's file, open; `held` once wait() has got it."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.path = os.path.join(store.locks_directory, name)
        self.held = False
        self._descriptor = self._open()

    def wait(
        self, seconds: float, on_wait: Callable[[str], None], arrived: Callable[[], bool]
    ) -> bool:
        """Wait for the lock, or for what its holder makes; whether another held it before."""
        deadline = time.monotonic() + seconds
        pause = FIRST_WAIT
        waited = False
        while not self._take():
            if not waited:
                on_wait(self._holder())
            waited = True
            self.store.look_anew()
            if arrived():
                return True
            if time.monotonic() > deadline:
                raise BusyError(
                    "waited longer than the site allows for another pull of the same image",
                    "see the setting pull_timeout",
                )
            # Those who began to wait together do not look together.
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  no secret
            pause = min(pause * GROWTH, LAST_WAIT)
        return waited

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    def _take(self) -> bool:
        while _try_lock(self._descriptor, self.path):
            # The file may have been removed between open and flock (remove_lock): then others
            # lock a new one.
            if _has_name(self._descriptor):
                # What its last holder made on another node is to be seen, too.
                self.store.look_anew()
                self.held = True
                self._sign()
                return True
            os.close(self._descriptor)
            self._descriptor = self._open()
        return False

    def _sign(self) -> None:
        # For people who wait; a full store must not stop who tidies it up.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, os.uname().nodename.encode(), 0)

    def _holder(self) -> str:
        return os.pread(self._descriptor, MAX_NODE_NAME, 0).decode(errors="replace")

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path, flags, 0o600)
        except PermissionError as error:
            raise _no_permission(self.store, error) from None


def _nothing(_: str) -> None:
    """Tell nobody."""


def _never() -> bool:
    return False


def _try_lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:
            return True  # removed on an NFS server since it was opened: _has_name() tells
        hint = "mount Lustre with -o flock" if error.errno == errno.ENOSYS else ""
        raise SiteError(f"cannot lock {path}: {error.strerror}", hint) from None


def _has_name(descriptor: int) -> bool:
    # An NFS client asks the server anew once it has a lock: the number is no old one.
    try:
        return os.fstat(descriptor).st_nlink > 0
    except OSError:
        return False


def _no_permission(store: Store, error: OSError) -> UserError:
    return UserError(
        f"cannot write to the store {store.root}: {error.strerror}",
        "the site's store is root's; name a store of your own by --config",
    )
