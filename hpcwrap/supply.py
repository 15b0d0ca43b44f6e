"""Supply: the image that a job gets on this node, kept for it until its end.

A job never waits for a registry when a good copy is there: one that is older than the site's
policy is used, and asked about in the background.  Where a job was pinned to a digest when it was
submitted, it gets that one, whatever its tag means by now.
"""

from __future__ import annotations

import os
import time
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from hpcwrap import paths, record, run
from hpcwrap.errors import SiteError, UserError
from hpcwrap.image import lease, refresh
from hpcwrap.image.source import Source, parse_source
from hpcwrap.image.store import Image, Link, Store, allowed, touch_used
from hpcwrap.job import Job
from hpcwrap.submit import Choice

SECONDS_A_NODE = 0.25
"""Seconds by which a node more spreads the pulls of a job's nodes."""

LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay")
"""File systems that are one node's alone; those that this does not name may be shared."""

ATTEMPTS = 3
"""How often an image may be removed between the moment it is found and the lease on it."""


class Supplied(NamedTuple):
    """An image that is kept for a job: `stores` hold its leases; times in ms of what was waited
    for, none when the image was there; `warning` is for the job's record.
    """

    image: Image
    stores: Tuple[str, ...]
    milliseconds: Dict[str, float]
    warning: str

    def give_back(self, job: Job) -> None:
        """Give the leases back, for a job that does not start."""
        for root in self.stores:
            lease.drop(Store(root), self.image.digest, job.node, job.id)


def supply(choice: Choice, job: Job, config_file: str) -> Supplied:
    """Find the image of a job, or pull it if the site lets the prolog do so, and keep it.

    Raises UserError or SiteError.
    """
    supplier = _Supplier(choice, job, config_file)
    for _ in range(ATTEMPTS):
        image, times = supplier.find_or_pull()
        if supplier.keep(image):
            return supplier.bring_or_give_back(image, times)
    raise SiteError(
        f"cannot keep the image {choice.environment.image}: it is removed from the store again "
        "and again",
        "is store_size too small for it?",
    )


class _Supplier:
    """The steps for one job."""

    def __init__(self, choice: Choice, job: Job, config_file: str) -> None:
        self.choice = choice
        self.job = job
        self.config_file = config_file
        self.settings = choice.settings
        self.source: Source = parse_source(choice.environment.image)
        self.store = Store(choice.settings.store)
        self.held: List[str] = []
        self.warning = ""

    def find_or_pull(self) -> Tuple[Image, Dict[str, float]]:
        image = self.find()
        if image is not None:
            self.look_at_age()
            return image, {}
        if self.settings.pull == "never":
            raise self.missing()
        return self.pull()

    # ---- what is there ----

    def find(self) -> Optional[Image]:
        """The image that this job may have from the store as it is; None for none."""
        if self.choice.pin:
            return self.if_allowed(self.find_pinned())
        found = map(self.image_of, self.links())
        return next((image for image in found if image), None)

    def links(self) -> Iterator[Link]:
        """What the store knows of the name: what this user's own jobs made of it, then the site's.

        Never another user's: one path is another file on another node, and so is one localhost.
        """
        for owner in (self.owner, None) if self.choice.named_by_user else (None,):
            link = self.store.find_link(self.source, owner)
            if link:
                yield link

    @property
    def owner(self) -> Optional[int]:
        return self.job.user.uid if self.choice.named_by_user else None

    def image_of(self, link: Link) -> Optional[Image]:
        image = self.if_allowed(self.store.find_digest(link.digest, str(self.source)))
        return image if image and self.is_as_it_was(link) else None

    def if_allowed(self, image: Optional[Image]) -> Optional[Image]:
        return image if image and allowed(image, self.job.user.uid) else None

    def find_pinned(self) -> Optional[Image]:
        """The image of the digest, if that was ever the environment's."""
        pin = self.choice.pin
        found = self.store.find_pinned(str(self.source), pin)
        if found is not None or self.source.reference is None:
            return found
        # Whoever pulled by digest had the registry say that it is in this repository.
        by_digest = self.by_digest()
        return self.store.find(by_digest) if self.store.find_link(by_digest) else None

    def by_digest(self) -> str:
        """The reference of the pinned digest in the environment's repository."""
        reference = self.source.reference
        if reference is None or self.source.local:
            raise UserError(
                f"cannot find {self.choice.environment.name}@{self.choice.pin} in the store",
                "the file that it was made from may be another by now",
            )
        return str(reference._replace(tag=None, digest=self.choice.pin))

    def is_as_it_was(self, link: Link) -> bool:
        """Whether a user's own file still is what the image was made from; true for all others."""
        if not (self.choice.named_by_user and self.source.local):
            return True
        from hpcwrap.image.reader import stamp_as

        user = self.job.user
        stamp = stamp_as(run.Identity(user.uid, user.gid, user.groups), self.source)
        return link.stamp == stamp != ""

    def missing(self) -> UserError:
        name = self.choice.environment.name
        if self.choice.named_by_user:
            return UserError(
                f"cannot find the image {name} in the store",
                "this site pulls no images for jobs: ask an administrator",
            )
        wanted = self.by_digest() if self.choice.pin else name
        return UserError(
            f"cannot find the image {self.source} of {name} in the store",
            f"an administrator has to run `hpcwrap pull {wanted}`",
        )

    # ---- what is not ----

    def pull(self) -> Tuple[Image, Dict[str, float]]:
        from hpcwrap.image.pull import Pulled, pull
        from hpcwrap.image.puller import options_from

        text = self.by_digest() if self.choice.pin else str(self.source)
        options = options_from(
            self.settings, self.job.user, named_by_user=self.choice.named_by_user
        )
        started = time.monotonic()
        pause = spread(self.job, self.settings.pull_jitter, self.store.root)
        time.sleep(pause)
        # Since the first look another may have pulled it; to pull now would ask the registry anew.
        found = self.find()
        pulled = Pulled(found, False, {}) if found else pull(text, self.store, options)
        if not pulled.new:
            return pulled.image, {"wait": round((time.monotonic() - started) * 1e3, 2)}
        jitter = {"jitter": round(pause * 1e3, 2)} if pause else {}
        return pulled.image, {**jitter, **pulled.milliseconds}

    # ---- what is old ----

    def look_at_age(self) -> None:
        """Have the tag looked up again where that is due, and note where it could not be."""
        link = next(self.links(), None)
        if link is None or (self.choice.named_by_user and self.source.local):
            return
        self.warning = refresh.warning(link)
        if refresh.is_due(link, self.settings.pull, time.time()):
            refresh.start_refresh(self.store, link, self.config_file, self.job.user.name)

    # ---- what stays ----

    def keep(self, image: Image) -> bool:
        """Take a lease; False when the image was removed before it was there."""
        digest = image.digest
        if not self.hold(self.store, digest):
            return True
        self.store.look_anew()
        if os.path.exists(self.store.document_path(digest)):
            self.held = [self.store.root]
            return True
        lease.drop(self.store, digest, self.job.node, self.job.id)
        return False

    def hold(self, store: Store, digest: str) -> bool:
        """Take a lease that the epilog finds, should the prolog be killed before its record."""
        held = record.Held(store.root, digest, self.job.node)
        record.note_lease(paths.JobPaths(self.job.id), held)
        return lease.hold(store, digest, self.job.node, self.job.id)

    def bring_or_give_back(self, image: Image, times: Dict[str, float]) -> Supplied:
        """What the job gets, from the node's copy if there can be one."""
        try:
            copy, more = self.bring(image)
        except BaseException:
            self.supplied(image, times).give_back(self.job)
            raise
        return self.supplied(copy, {**times, **more})

    def supplied(self, image: Image, times: Dict[str, float]) -> Supplied:
        return Supplied(image, tuple(self.held), times, self.warning)

    def bring(self, image: Image) -> Tuple[Image, Dict[str, float]]:
        """The node's own copy, where the site wants one, kept as well; what was waited for it."""
        if not self.settings.cache:
            touch_used(image)
            return image, {}
        from hpcwrap.human import parse_size
        from hpcwrap.image import cache

        copies = Store(self.settings.cache)
        limit = parse_size(self.settings.cache_size)
        began = time.monotonic()
        there = os.path.exists(copies.document_path(image.digest))
        copy = cache.bring(self.store, copies, image, limit)
        times = {} if there else {"copy": round((time.monotonic() - began) * 1e3, 2)}
        return (copy if self.keep_copy(copies, copy) else image), times

    def keep_copy(self, copies: Store, copy: Image) -> bool:
        """Take a lease on a node's copy; False when there is none, or none any more."""
        if copy.squashfs != copies.squashfs_path(copy.digest):
            return False
        self.hold(copies, copy.digest)
        # The document, not the squashfs: who evicts hides it before it looks for leases.
        if not os.path.exists(copies.document_path(copy.digest)):
            lease.drop(copies, copy.digest, self.job.node, self.job.id)
            return False
        self.held.append(copies.root)
        touch_used(copy)
        return True


def spread(job: Job, seconds: float, store: str) -> float:
    """Seconds that this node waits before it pulls, for the nodes of a job that each pull alone.

    Where they share the store one of them pulls and the others wait for it, without this.
    """
    if job.nodes < 2 or is_shared(store):
        return 0.0
    import random

    return random.uniform(0.0, min(seconds, job.nodes * SECONDS_A_NODE))  # noqa: S311


def is_shared(path: str, mounts: str = "/proc/self/mountinfo") -> bool:
    """Whether a directory is on a file system that other nodes have, too; by its kind."""
    path = os.path.realpath(path)
    kinds = {}
    with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point, kind = line.split()[4], line.partition(" - ")[2].split()[0]
            if point == "/" or f"{path}/".startswith(f"{point}/"):
                kinds[point] = kind
    return kinds[max(kinds, key=len)] not in LOCAL
