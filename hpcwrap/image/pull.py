"""Pull: what a source names becomes an image in the store.

The one function to read is `pull`.  What touches a registry or what it sent runs in a worker
(worker.py), as the site's image user when we are root; what lies on this machine is read as the
user who named it (reader.py).  Root itself only makes directories, takes locks and renames
finished files.

Whose an image is: everyone's, if the registry gave it to anybody or to the site; its user's, if
it took that user's password or came from a file that the user named.
"""

from __future__ import annotations

import os
import pwd
import time
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    cast,
)

from hpcwrap import __version__, run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.human import parse_size
from hpcwrap.image import credentials, transport
from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.allow import check_source, matches
from hpcwrap.image.cache import evict
from hpcwrap.image.convert import OUTPUT, Download, Fetched, Stopwatch, fetch
from hpcwrap.image.digest import check_digest, hex_digits
from hpcwrap.image.layers import prepare_cache
from hpcwrap.image.local import LocalDownload, resolve_local
from hpcwrap.image.manifest import Blob, Manifest
from hpcwrap.image.publish import grant, publish_image, publish_link, share
from hpcwrap.image.reader import open_as, stamp_as
from hpcwrap.image.reference import Reference
from hpcwrap.image.source import Source, parse_source
from hpcwrap.image.squashfs import Format
from hpcwrap.image.store import Image, Link, Store, allowed, file_name
from hpcwrap.image.transport import Resolved
from hpcwrap.image.worker import Progress, Report, work_as
from hpcwrap.image.workspace import ensure_store, locked, locked_unless, workspace
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


class Pulled(NamedTuple):
    """What a pull came to; `new` is False when the image was in the store already."""

    image: Image
    new: bool
    milliseconds: Dict[str, float]


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


def silent(progress: Progress) -> None:
    """Report progress to nobody."""


def pull(
    text: str,
    store: Store,
    options: Optional[PullOptions] = None,
    on_progress: Report = silent,
) -> Pulled:
    """Ask anew what a source is and have its image in the store afterwards, for this user.

    One puller works on a source and on an image at a time; the others wait and then find it.
    Raises UserError or SiteError with the source in the message.
    """
    source = parse_source(text)
    options = options or PullOptions()
    check_source(source, options.allow_images)
    puller = (_FromFile if source.local else _FromRegistry)(source, store, options, on_progress)
    ensure_store(store)
    name = f"ref-{file_name(str(source), options.owner)}"
    arrived = puller.has_arrived
    new = False
    with locked_unless(store, name, puller.seconds, arrived, puller.say_wait) as held:
        if held and not arrived():
            new = puller.bring()
    image = puller.find()
    if new and options.store_size:
        evict(store, options.store_size, keep=(image.digest,))
    return Pulled(image, new, puller.watch.milliseconds)


class _Download(NamedTuple):
    """How blobs come, where the worker puts them, and whether the image is its user's alone.

    has_shown: whether what was seen of an image in the store is enough to let our user have that.
    """

    begin: Begin
    place: ContextManager[str]
    private: bool
    has_shown: Callable[[Image], bool]


class _Made(NamedTuple):
    """A squashfs in a directory of a worker's, and what is known of it."""

    directory: str
    fetched: Fetched


class _Puller:
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
        return locked(self.store, name, self.seconds, self.say_wait)

    def say_wait(self, node: str) -> None:
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
        return self.store.find_link(self.source, self.options.owner)

    def publish_link(self, digest: str, stamp: str = "") -> None:
        publish_link(self.store, self.source, digest, stamp, self.options.owner)
        self.digest = digest

    def is_for_us(self, image: Image) -> bool:
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
    ) -> Dict[str, Any]:
        """Have a worker do something in a directory of its own; `stage` gets its time."""
        told = work_as(self.identity, directory, work, self.on_progress, self.seconds, keep=keep)
        if stage:
            self.watch.lap(stage)
        return told

    def settle(self, resolved: Resolved, download: _Download, stamp: str = "") -> bool:
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

    def convert(self, begin: Begin, directory: str) -> _Made:
        """Convert what a download brings."""
        form = self.options.form
        told = self.work(
            directory, lambda report: {"fetched": fetch(self.name, begin, form, report)}
        )
        fetched = Fetched(*told["fetched"])
        self.watch.milliseconds.update(fetched.milliseconds)
        return _Made(directory, fetched)

    def publish(self, resolved: Resolved, made: _Made, *, private: bool) -> None:
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


class _FromRegistry(_Puller):
    """A pull whose digest is known before anything is downloaded."""

    def bring(self) -> bool:
        resolved, access = self.ask()

        def begin() -> Download:
            directory = os.path.abspath("download")
            return transport.Download(self.reference, resolved, directory, access)

        place = workspace(self.store, self.identity, self.seconds)
        has_shown = partial(self.has_shown, private=access.private)
        return self.settle(resolved, _Download(begin, place, access.private, has_shown))

    def has_shown(self, image: Image, *, private: bool) -> bool:
        """Whether a registry that shows the manifest shows that our user may have the image.

        Of a private one only where the image came from: any other may know no more than that.
        """
        if not image.uids or (private and self.is_for_us(image)):
            return True
        origin = parse_source(image.reference)
        known = origin.reference.name if origin.reference and not origin.local else ""
        return known == self.reference.name and not self.reference.loopback

    @property
    def reference(self) -> Reference:
        return cast(Reference, self.source.reference)

    def ask(self) -> Tuple[Resolved, Access]:
        """Ask the registry what the reference is, as the site, or else as the user.

        Returns the access with which it answered.
        """
        access = self.options.access._replace(auth=self.site_auth(), cache=self.cache())
        try:
            return self.resolve(access), access
        except UserError as refused:
            # Some registries say of what they do not give that it is not there.
            auth = self.user_auth()
            if not auth:
                raise
            access = access._replace(auth=auth, private=not self.is_shared())
            return self.resolve_again(access, refused), access

    def resolve_again(self, access: Access, refused: UserError) -> Resolved:
        try:
            return self.resolve(access)
        except UserError:
            raise refused from None

    def resolve(self, access: Access) -> Resolved:
        self.on_progress(Progress("resolve", self.name, 0, 0))
        with workspace(self.store, self.identity, self.seconds) as directory:
            told = self.work(
                directory,
                lambda _: {"resolved": transport.resolve(self.reference, access)},
                "resolve",
            )
        return _resolved(told["resolved"])

    def site_auth(self) -> bytes:
        """The site's passwords; they are root's, and no user who has a store needs them."""
        path = self.options.auth_file
        if os.geteuid() != 0 and not os.access(path, os.R_OK):
            return b""
        return credentials.site_auth(Settings(auth_file=path))

    def user_auth(self) -> bytes:
        """The password of the user whose job it is; empty for none."""
        user = self.options.user
        if user is None or not self.options.user_credentials:
            return b""
        return credentials.user_auth(user, self.reference)

    def cache(self) -> str:
        """The directory of the layer cache, made where it is missing; empty for none."""
        if not self.options.access.cache_limit:
            return ""
        prepare_cache(self.store.blobs_directory, self.identity)
        return self.store.blobs_directory


class _FromFile(_Puller):
    """A pull of what lies on this machine: its digest is known when all of it has been read."""

    @property
    def reader(self) -> Optional[run.Identity]:
        """Who reads it: the user who named it; for an environment, the image user."""
        user = self.options.user
        if not self.options.named_by_user:
            return self.identity
        return run.Identity(user.uid, user.gid, user.groups) if user else None

    @property
    def private(self) -> bool:
        named = self.options.named_by_user and self.options.user is not None
        return named and not self.is_shared()

    def has_arrived(self) -> bool:
        """Never by another's work alone: what a path is depends on the node and on who asks."""
        return False

    def bring(self) -> bool:
        stamp = stamp_as(self.reader, self.source)
        link = self.link()
        if link is None or not stamp or link.stamp != stamp:
            return self.read_again()
        with self.lock(f"image-{hex_digits(link.digest)}"):
            image = self.store.find_digest(link.digest)
            # A stamp lets nobody in: on a file system of their own, users can make any.
            if image is not None and self.is_for_us(image):
                self.let_in(image, private=self.private)
                self.publish_link(link.digest, stamp)
                return False
        return self.read_again()

    def read_again(self) -> bool:
        with workspace(self.store, self.identity, self.seconds) as directory:
            resolved, stamp = self.read(directory)

            def begin() -> Download:
                return LocalDownload(self.source, resolved)

            # All of it was read already, and compared with its digests.
            download = _Download(begin, nullcontext(directory), self.private, lambda _: True)
            return self.settle(resolved, download, stamp)

    def read(self, directory: str) -> Tuple[Resolved, str]:
        """Store what the source is in the directory; the image that it is, and its stamp."""
        access = self.options.access
        with open_as(self.reader, self.source) as stream:
            told = self.work(
                directory,
                lambda report: {"resolved": resolve_local(stream, self.source, report, access)},
                "read",
                keep=(stream.pipe,),
            )
        return _resolved(told["resolved"]), stream.stamp


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


def _resolved(told: Any) -> Resolved:
    # What the worker says passed through a process that read foreign bytes: check it again.
    digest, (config, layers) = told
    check_digest(digest, "the image")
    return Resolved(digest, Manifest(Blob(*config), tuple(Blob(*layer) for layer in layers)))
