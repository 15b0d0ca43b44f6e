"""Settings and environments without YAML: what the prolog reads instead, for every job.

A snapshot is one JSON file: the settings, one environment after inheritance, and the stamp of
every file and directory that they came from.  As soon as one stamp does not fit, the YAML is read
again and the snapshot written anew; no command has to be run after an edit.  Snapshots are root's
alone and only a short cut: whoever cannot read or write them reads the YAML.
"""

from __future__ import annotations

import contextlib
import json
import os
from time import time_ns
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from hpcwrap import __version__, config, paths
from hpcwrap.config import Settings
from hpcwrap.environment import Environment, Machine, Mount, Rlimit, Variable, is_name

Clock = Callable[[], int]
"""The time in nanoseconds since the epoch."""

Stamps = Dict[str, Optional[List[int]]]
"""Path → mtime, ctime, size and inode; None while there is no such file."""

Document = Dict[str, Any]

RACY_NS = 2_000_000_000
"""A file changed so shortly before may change again within one tick of its time stamps."""

ABANDONED_NS = 60_000_000_000
"""An unfinished snapshot this old is of a process that was killed."""

UNFINISHED = ".new"
"""How the name of a snapshot ends while it is written."""

SETTINGS_NAME = "_settings"
"""The snapshot without an environment; no environment's name begins like this."""


def load_environment(
    name: str,
    config_file: str = paths.CONFIG_FILE,
    cache: str = paths.SNAPSHOTS,
    clock: Clock = time_ns,
) -> Tuple[Settings, Environment]:
    """The settings and one environment after inheritance, from its snapshot while that is fresh.

    Raises SiteError when the files are at fault, UserError when there is no such environment.
    """
    if not is_name(name):
        return config.load_one(name, config_file, config.unwatched)
    snapshot = Snapshot(name, config_file, cache, clock)
    fresh = snapshot.read()
    if fresh and fresh[1]:
        return fresh[0], fresh[1]
    settings, environment = config.load_one(name, snapshot.config_file, snapshot.watch)
    snapshot.write(settings, environment)
    return settings, environment


def load_settings(
    config_file: str = paths.CONFIG_FILE,
    cache: str = paths.SNAPSHOTS,
    clock: Clock = time_ns,
) -> Settings:
    """The settings alone, from their snapshot while that is fresh.

    Raises SiteError when the files are at fault.
    """
    snapshot = Snapshot(SETTINGS_NAME, config_file, cache, clock)
    fresh = snapshot.read()
    if fresh:
        return fresh[0]
    from hpcwrap import settingsfile

    settings, _ = settingsfile.read_settings(snapshot.config_file, snapshot.watch)
    snapshot.write(settings, None)
    return settings


class Snapshot:
    """One snapshot: read while it is fresh, or written from what was read under its watch."""

    def __init__(self, name: str, config_file: str, cache: str, clock: Clock) -> None:
        self.config_file = os.path.abspath(config_file)
        self.path = os.path.join(cache, name + ".json")
        self.clock = clock
        self.started = clock()
        self.stamps: Stamps = {}

    def watch(self, path: str) -> None:
        """Take the stamp of a path before it is read, so that a change from then on shows."""
        if path not in self.stamps:
            self.stamps[path] = stamp(path)

    def read(self) -> Optional[Tuple[Settings, Optional[Environment]]]:
        """What the snapshot holds, or None when it is stale, unreadable or not there."""
        try:
            with open(self.path, encoding="utf-8") as file:
                document = json.load(file)
            return restore(document) if self.is_fresh(document) else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def is_fresh(self, document: Document) -> bool:
        """True when this hpcwrap made it from these settings, and no file has changed since."""
        return (
            document["version"] == __version__
            and document["config_file"] == self.config_file
            and all(stamp(path) == then for path, then in document["stamps"].items())
        )

    def write(self, settings: Settings, environment: Optional[Environment]) -> None:
        """Write what was read, unless a file is so new that its stamp cannot be trusted yet."""
        if not settled(self.stamps, self.started):
            return
        document = {
            "version": __version__,
            "config_file": self.config_file,
            "stamps": self.stamps,
            **dump(settings, environment),
        }
        with contextlib.suppress(OSError):
            _ensure_directory(os.path.dirname(self.path))
            _publish(self.path, json.dumps(document), self.clock)


def stamp(path: str) -> Optional[List[int]]:
    """What tells that a file or directory changed; None when there is none.

    The ctime shows edits that put the mtime back, as rsync and cp -p do.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]


def settled(stamps: Stamps, now: int) -> bool:
    """True when every file last changed so long ago that its next change will show.

    Two writes within one tick of a file system's clock leave the same stamp: git's racy problem
    (gitformat-index(5), Documentation/technical/racy-git).
    """
    return all(max(each[:2]) < now - RACY_NS for each in stamps.values() if each)


def dump(settings: Settings, environment: Optional[Environment]) -> Document:
    """Settings and environment as JSON can hold them."""
    return {
        "settings": settings._asdict(),
        "environment": environment._asdict() if environment else None,
    }


def restore(document: Document) -> Tuple[Settings, Optional[Environment]]:
    """The reverse of `dump`.  Raises TypeError or LookupError for another shape."""
    settings, environment = document["settings"], document["environment"]
    settings["mounts"] = _restore_mounts(settings["mounts"])
    settings["rlimits"] = _restore_rlimits(settings["rlimits"])
    for name in ("allow_images", "shared_images", "cdi_directories", "mpi_libraries"):
        settings[name] = tuple(settings[name])
    if environment is None:
        return Settings(**settings), None
    environment["mounts"] = _restore_mounts(environment["mounts"])
    environment["variables"] = tuple(Variable(*each) for each in environment["variables"])
    environment["users"] = tuple(environment["users"])
    environment["groups"] = tuple(environment["groups"])
    environment["machine"] = _restore_machine(Machine(*environment["machine"]))
    return Settings(**settings), Environment(**environment)


def _restore_mounts(mounts: List[List[Any]]) -> Tuple[Mount, ...]:
    return tuple(
        Mount(source, target, kind, tuple(options), origin)
        for source, target, kind, options, origin in mounts
    )


def _restore_rlimits(rlimits: Iterable[Any]) -> Tuple[Rlimit, ...]:
    return tuple(Rlimit(*each) for each in rlimits)


def _restore_machine(machine: Machine) -> Machine:
    devices = None if machine.devices is None else tuple(machine.devices)
    return machine._replace(devices=devices, rlimits=_restore_rlimits(machine.rlimits))


def _ensure_directory(path: str) -> None:
    """Make the directory, for its owner alone: variables of environments may be secret."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _publish(path: str, text: str, clock: Clock) -> None:
    """Put a file into place whole; leave it to another process that is just doing the same."""
    unfinished = path + UNFINISHED
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if os.stat(unfinished).st_mtime_ns < clock() - ABANDONED_NS:
            os.unlink(unfinished)
        return
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(unfinished, path)
    except OSError:
        os.unlink(unfinished)
        raise
