"""Refresh: ask a registry again what a tag means, beside the jobs that run what it meant before.

A job that finds its image older than the site's policy starts one in the background and goes on;
`hpcwrap image refresh` does it from a timer.  Where the registry cannot be asked, the image stays,
and its link says since when and why.  Light: the warm prolog imports this module.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

from hpcwrap import run
from hpcwrap.image.store import Link, Store, file_name

if TYPE_CHECKING:
    from hpcwrap.image.pull import Pulled
    from hpcwrap.image.puller import PullOptions

HOUR = 3600.0
AGES = {"always": 0.0, "hourly": HOUR, "daily": 24 * HOUR, "weekly": 168 * HOUR}
"""Seconds after which a tag is looked up again, by the setting pull; those without stay."""

PATIENCE = 60.0
"""Seconds after a failure in which no job tries again."""

LOCK_SECONDS = 10.0


def is_due(link: Link, pull: str, now: float) -> bool:
    """Whether what a link says is older than the setting pull allows; `now` is an epoch in s."""
    if pull not in AGES or link.reference.endswith(f"@{link.digest}"):
        return False
    return now - link.resolved > AGES[pull] and now - link.failed_at > PATIENCE


def start_refresh(store: Store, link: Link, config_file: str, user: str) -> bool:
    """Start `hpcwrap image refresh` in the background; False where one runs for this name already.

    The lock goes to the new process, so that thousands of jobs start one.  A store that this node
    may only read is refreshed by others.
    """
    name = f"refresh-{file_name(link.reference, link.owner)}"
    path = os.path.join(store.locks_directory, name)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        words = ["image", "refresh", "--quiet", "--user", user]
        words += [] if link.owner is None else ["--own"]
        words += ["--", link.reference]
        argv = [sys.executable, "-I", "-m", "hpcwrap", "--config", config_file, *words]
        run.detach(argv, keep=lock)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def refresh(store: Store, text: str, options: PullOptions) -> Pulled:
    """Ask anew what a source is, and pull what it is now.

    Raises what kept that from happening, which the link tells until the next time.
    """
    from hpcwrap.errors import HpcwrapError
    from hpcwrap.image.publish import note_failure
    from hpcwrap.image.pull import pull
    from hpcwrap.image.store import parse_key
    from hpcwrap.image.workspace import locked

    try:
        return pull(text, store, options)
    except HpcwrapError as error:
        with suppress(HpcwrapError, OSError):
            name = f"ref-{file_name(parse_key(text)[0], options.owner)}"
            with locked(store, name, LOCK_SECONDS):
                note_failure(store, text, error.sentence(), options.owner)
        raise


def warning(link: Optional[Link]) -> str:
    """What a job's record says of an image whose tag could not be looked up again."""
    if link is None or not link.failed:
        return ""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(link.resolved))
    return f"the image is as it was at {since}: {link.failed}"
