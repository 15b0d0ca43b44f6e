"""Locks of the store and the directories in which pulls work.

All locks are flock(2): the kernel gives them back when their holder ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Optional

from hpcwrap import run
from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.store import Store

POLL = 0.05
LEFTOVER_AGE = 86400.0
"""Seconds after which a document that nobody renamed was left by a killed process."""


def ensure_store(store: Store) -> None:
    """Make the store's directories where they are missing.

    Raises UserError for a user who may not write there, SiteError for other reasons.
    """
    modes = {
        store.root: 0o755,
        store.images_directory: 0o755,
        store.refs_directory: 0o755,
        # Whoever can open a lock's file can hold the lock: only the store's owner may.
        store.locks_directory: 0o700,
        # Searchable, so that the image user comes to its own directory, and closed otherwise.
        store.tmp_directory: 0o711,
    }
    try:
        for directory, mode in modes.items():
            if not os.path.isdir(directory):
                os.makedirs(directory, exist_ok=True)
                os.chmod(directory, mode)
    except PermissionError as error:
        raise _no_permission(store, error) from None
    except OSError as error:
        raise SiteError(f"cannot make the store {store.root}: {error.strerror}") from None


@contextmanager
def locked(
    store: Store, name: str, seconds: float, on_wait: Optional[Callable[[], None]] = None
) -> Iterator[bool]:
    """Hold the lock of that name; yields whether somebody else held it before.

    on_wait is called once when it is not free.  Raises SiteError after `seconds`.
    """
    path = os.path.join(store.locks_directory, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        raise _no_permission(store, error) from None
    try:
        yield _wait_for(descriptor, path, seconds, on_wait)
    finally:
        os.close(descriptor)


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
        shutil.rmtree(directory, ignore_errors=True)
        _drop_lock(store, directory)
        os.close(descriptor)


def _open_lock(store: Store, directory: str) -> int:
    """Open the lock of a workspace: a file, because NFS keeps locks of directories to itself."""
    path = os.path.join(store.locks_directory, os.path.basename(directory))
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _drop_lock(store: Store, directory: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(store.locks_directory, os.path.basename(directory)))


def remove_leftovers(store: Store) -> None:
    """Remove what killed pulls left: directories in STORE/tmp that nobody has locked, and
    documents under their first name.
    """
    for item in os.scandir(store.tmp_directory):
        # Owners remove and rename what is theirs without asking: it may be gone by now.
        if item.is_dir(follow_symlinks=False):
            _remove_unlocked(store, item.path)
    for directory in (store.images_directory, store.refs_directory):
        for item in os.scandir(directory):
            if item.name.startswith("."):
                with suppress(FileNotFoundError):
                    _remove_old(item.path)


def _remove_unlocked(store: Store, directory: str) -> None:
    descriptor = _open_lock(store, directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
        _drop_lock(store, directory)
    except BlockingIOError:
        return  # a pull works there
    finally:
        os.close(descriptor)


def _remove_old(document: str) -> None:
    if time.time() - os.stat(document).st_mtime > LEFTOVER_AGE:
        os.unlink(document)


def _wait_for(
    descriptor: int, path: str, seconds: float, on_wait: Optional[Callable[[], None]]
) -> bool:
    deadline = time.monotonic() + seconds
    waited = False
    while not _try_lock(descriptor, path):
        if not waited and on_wait:
            on_wait()
        waited = True
        if time.monotonic() > deadline:
            raise SiteError(
                "waited longer than the site allows for another pull of the same image",
                "see the setting pull_timeout",
            )
        time.sleep(POLL)
    return waited


def _try_lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        hint = "mount Lustre with -o flock" if error.errno == errno.ENOSYS else ""
        raise SiteError(f"cannot lock {path}: {error.strerror}", hint) from None


def _no_permission(store: Store, error: OSError) -> UserError:
    return UserError(
        f"cannot write to the store {store.root}: {error.strerror}",
        "the site's store is root's; name a store of your own by --config",
    )
