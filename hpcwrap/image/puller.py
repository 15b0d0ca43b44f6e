"""One pull, whatever the source: its steps, its time, its locks, and whose the image becomes.

Whose an image is: everyone's, if the registry gave it to anybody or to the site; its user's, if
it took that user's password or came from a file that the user named.
"""

from __future__ import annotations

import os
import pwd
import time
from contextlib import ExitStack
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from hpcwrap import __version__, run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
from hpcwrap.human import parse_size
from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.allow import matches
from hpcwrap.image.digest import check_digest, hex_digits
from hpcwrap.image.download import OUTPUT, Download, Fetched, Format, Stopwatch
from hpcwrap.image.manifest import Blob, Manifest
from hpcwrap.image.publish import grant, publish_image, publish_link, share
from hpcwrap.image.source import Source
from hpcwrap.image.store import Image, Link, Store, allowed
from hpcwrap.image.transport import Resolved
from hpcwrap.image.worker import Progress, Report, nothing, work_as
from hpcwrap.image.workspace import locked
from hpcwrap.job import User

Begin = Callable[[], Download]
"""Begins a download, in the worker."""


class PullOptions(NamedTuple):
    """What concerns a pull of the site's settings, and who wants the image.

    timeout is in seconds, for the whole of it.  access is the site's, without passwords, which
    are in auth_file.  store_size is in bytes, 0 for no bound.  user is whose job it is, None for
    an administrator; named_by_user, whether who asks chose the source, and not an environment's
    file.
    """

    image_user: str = "nobody"
    form: Format = Format()
    timeout: float = 900.0
    access: Access = ANONYMOUS
    auth_file: str = ""
    user_credentials: bool = True
    allow_images: Tuple[str, ...] = ()
    shared_images: Tuple[str, ...] = ()
    store_size: int = 0
    user: Optional[User] = None
    named_by_user: bool = False

    @property
    def owner(self) -> Optional[int]:
        """Whose the link is that a pull leaves: of who named the source, in the site's store."""
        return self.user.uid if self.user and self.named_by_user and os.geteuid() == 0 else None


def options_from(
    settings: Settings, user: Optional[User] = None, *, named_by_user: bool = False
) -> PullOptions:
    """The pull's part of the site's settings."""
    return PullOptions(
        image_user=settings.image_user,
        form=Format(settings.squashfs_compression, settings.squashfs_level),
        timeout=settings.pull_timeout,
        access=Access(
            policy=settings.policy,
            registries_conf=settings.registries_conf,
            timeout=settings.registry_timeout,
            retries=settings.registry_retries,
            cache_limit=parse_size(settings.layer_cache),
        ),
        auth_file=settings.auth_file,
        user_credentials=settings.user_credentials,
        allow_images=settings.allow_images,
        shared_images=settings.shared_images,
        store_size=parse_size(settings.store_size),
        user=user,
        named_by_user=named_by_user,
    )


class Coming(NamedTuple):
    """How blobs come, where the worker puts them, and whether the image is its user's alone.

    has_shown: whether what was seen of an image in the store is enough to let our user have that.
    """

    begin: Begin
    place: ContextManager[str]
    private: bool
    has_shown: Callable[[Image], bool]


class Made(NamedTuple):
    """A squashfs in a directory of a worker's, and what is known of it."""

    directory: str
    fetched: Fetched


class Puller:
    """One pull: its steps, its time and the locks that it holds."""

    def __init__(
        self, source: Source, store: Store, options: PullOptions, on_progress: Report
    ) -> None:
        self.source = source
        self.name = str(source)
        self.store = store
        self.options = options
        self.on_progress = on_progress
        self.watch = Stopwatch()
        self.before = store.find_link(source, options.owner)
        self.digest = ""
        self.deadline = time.monotonic() + options.timeout
        self.identity = find_identity(options.image_user)

    def bring(self) -> bool:
        """Have the image in the store and the source point to it; whether the image is new."""
        raise NotImplementedError

    @property
    def seconds(self) -> float:
        """What is left of the site's patience."""
        return max(0.0, self.deadline - time.monotonic())

    def lock(self, name: str) -> ContextManager[bool]:
        """Hold a lock of the store; who waits for it is told."""
        return locked(self.store, name, self.seconds, self.say_wait)

    def say_wait(self, node: str) -> None:
        """Tell whom we wait for."""
        who = f"{node}, which pulls" if node else "another pull of"
        self.on_progress(Progress("wait", f"{who} {self.name}", 0, 0))

    def has_arrived(self) -> bool:
        """Whether somebody else has asked anew since we began, and our user may have the image."""
        # No comparison with our clock: another node has another, and `resolved` is some time before
        # the link can be seen.
        link = self.link()
        if link is None or (self.before and self.before.resolved == link.resolved):
            return False
        image = self.store.find_digest(link.digest)
        self.digest = link.digest
        return image is not None and self.is_for_us(image)

    def link(self) -> Optional[Link]:
        """What the source points to now, for who asks."""
        return self.store.find_link(self.source, self.options.owner)

    def publish_link(self, digest: str, stamp: str = "") -> None:
        """Have the source point to an image of the store."""
        publish_link(self.store, self.source, digest, stamp, self.options.owner)
        self.digest = digest

    def is_for_us(self, image: Image) -> bool:
        """Whether the user of this pull may have the image."""
        return self.options.user is None or allowed(image, self.options.user.uid)

    def find(self) -> Image:
        """The image, which is in the store now.  Raises SiteError when it has gone again."""
        # Not what the link says by now: another puller may have moved it since we gave up its lock.
        image = self.store.find_digest(self.digest, self.name)
        if image is None or not self.is_for_us(image):
            raise SiteError(
                f"cannot find the image {self.name} in the store after it was pulled",
                "did somebody remove it, or is store_size too small for it?",
            )
        return image

    def is_shared(self) -> bool:
        """Whether the site shares what comes from this source with everyone."""
        return matches(self.source.full, self.options.shared_images)

    def let_in(self, image: Image, *, private: bool) -> None:
        """Let our user, or everyone, have an image that is in the store already."""
        if image.uids and not private:
            share(self.store, image.digest)
        elif self.options.user is not None:
            grant(self.store, image.digest, self.options.user.uid)

    def work(
        self,
        directory: str,
        work: Callable[[Report], Dict[str, Any]],
        stage: str = "",
        keep: Sequence[int] = (),
        meanwhile: Callable[[], None] = nothing,
    ) -> Dict[str, Any]:
        """Have a worker do something in a directory of its own; `stage` gets its time."""
        told = work_as(
            self.identity,
            directory,
            work,
            self.on_progress,
            self.seconds,
            keep=keep,
            meanwhile=meanwhile,
        )
        if stage:
            self.watch.lap(stage)
        return told

    def settle(self, resolved: Resolved, download: Coming, stamp: str = "") -> bool:
        """Have the image in the store and the source point to it; whether the image is new."""
        digest, own = resolved.digest, self.options.named_by_user
        lock = f"image-{hex_digits(digest)}"
        with ExitStack() as stack:
            if not own:
                stack.enter_context(self.lock(lock))
            made = None
            image = self.store.find_digest(digest)
            if image is None or not download.has_shown(image):
                made = self.convert(download.begin, stack.enter_context(download.place))
            if own:
                # Not before: nobody waits for what a user chose, which may be slow on purpose.
                stack.enter_context(self.lock(lock))
                image = self.store.find_digest(digest)
            if image is not None:
                self.let_in(image, private=download.private)
            elif made is not None:
                self.publish(resolved, made, private=download.private)
            self.publish_link(digest, stamp)
        return image is None

    def convert(self, begin: Begin, directory: str) -> Made:
        """Convert what a download brings."""
        from hpcwrap.image.convert import fetch

        form = self.options.form
        told = self.work(
            directory, lambda report: {"fetched": fetch(self.name, begin, form, report)}
        )
        fetched = Fetched(*told["fetched"])
        self.watch.milliseconds.update(fetched.milliseconds)
        return Made(directory, fetched)

    def publish(self, resolved: Resolved, made: Made, *, private: bool) -> None:
        """Put what was converted into the store."""
        directory, fetched = made
        self.watch.skip()
        document = self._document(resolved, fetched)
        user = self.options.user
        document["uids"] = [user.uid if user else os.geteuid()] if private else []
        pieces = {int(start): bytes.fromhex(piece) for start, piece in fetched.pieces}
        publish_image(self.store, resolved.digest, f"{directory}/{OUTPUT}", document, pieces)
        self.watch.lap("publish")

    def _document(self, resolved: Resolved, fetched: Fetched) -> Dict[str, Any]:
        return {
            "reference": self.name,
            "config": fetched.config,
            "pulled": time.time(),
            "made_by": f"hpcwrap {__version__}",
            "compressed_size": fetched.compressed,
            "unpacked_size": fetched.unpacked,
            "entries": fetched.entries,
            "devices_left_out": fetched.devices,
            "layers": [blob.digest for blob in resolved.manifest.layers],
            "squashfs": self.options.form._asdict(),
            "milliseconds": fetched.milliseconds,
        }


def find_identity(image_user: str) -> Optional[run.Identity]:
    """Whom the worker becomes: the image user if we are root, else nobody else.

    Raises SiteError when there is no such user, or when it is root.
    """
    if os.geteuid() != 0:
        return None
    try:
        account = pwd.getpwnam(image_user)
    except KeyError:
        raise SiteError(
            f"cannot find the user {image_user}", "see the setting image_user"
        ) from None
    if account.pw_uid == 0:
        raise SiteError("cannot convert images as root", "see the setting image_user")
    return run.Identity(account.pw_uid, account.pw_gid)


def as_resolved(told: Any) -> Resolved:
    """Take what a worker says of an image, whose digests are checked again."""
    # What the worker says passed through a process that read foreign bytes: check it again.
    digest, (config, layers) = told
    check_digest(digest, "the image")
    return Resolved(digest, Manifest(Blob(*config), tuple(Blob(*layer) for layer in layers)))
