"""A leftover: one thing that a job has left on this node, and how it is removed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Callable, Iterator, List, NamedTuple

from hpcwrap import owners, paths
from hpcwrap.config import Settings
from hpcwrap.finding import WRONG, Finding
from hpcwrap.image.store import Store


def nothing() -> bool:
    """For what is only told, or goes by itself."""
    return False


class Leftover(NamedTuple):
    """One thing that was left: where, of which kind, and what is the matter with it.

    remove() says whether it went, and raises HpcwrapError or OSError; it looks once more whether
    somebody has the thing after all.
    """

    where: str
    kind: str
    detail: str
    remove: Callable[[], bool] = nothing
    state: str = WRONG

    @property
    def finding(self) -> Finding:
        """This as a line of doctor's table."""
        return Finding(self.where, self.kind, self.state, self.detail)


class Node(NamedTuple):
    """What the kinds need to know of this node: settings, and its scheduler, if it has any."""

    settings: Settings
    scheduler: str = ""

    @property
    def jobs(self) -> List[str]:
        """Ids of the jobs that have a directory here, as it is now."""
        with suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(paths.JOBS) if entry.is_dir())
        return []

    @property
    def stores(self) -> List[Store]:
        """Those that are there: the site's, and this node's cache."""
        roots = filter(None, (self.settings.store, self.settings.cache))
        return [store for store in map(Store, roots) if os.path.isdir(store.images_directory)]


def is_at_work(place: paths.JobPaths) -> bool:
    """Whether a prolog or an epilog of this job runs just now."""
    with owners.turn(place, wait=False) as ours:
        return not ours


Kind = Callable[[Node], Iterator[Leftover]]
