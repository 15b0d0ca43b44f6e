"""Pull: a reference becomes an image in the store.

The one function to read is `pull`.  What touches a registry or what it sent runs in a worker
(worker.py), as the site's image user when we are root; root itself only makes directories, takes
locks and renames finished files.
"""

from __future__ import annotations

import os
import pwd
import time
from typing import Any, ContextManager, Dict, NamedTuple, Optional

from hpcwrap import __version__, run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError
from hpcwrap.image import transport
from hpcwrap.image.convert import OUTPUT, Download, Fetched, Stopwatch, fetch
from hpcwrap.image.digest import check_digest, hex_digits
from hpcwrap.image.manifest import Blob, Manifest
from hpcwrap.image.publish import publish_image, publish_link
from hpcwrap.image.reference import Reference, parse_reference
from hpcwrap.image.squashfs import Format
from hpcwrap.image.store import Image, Store, file_name
from hpcwrap.image.transport import Resolved
from hpcwrap.image.worker import Progress, Report, work_as
from hpcwrap.image.workspace import ensure_store, locked, workspace


class PullOptions(NamedTuple):
    """The settings that concern a pull; timeout in seconds, for the whole of it."""

    image_user: str = "nobody"
    form: Format = Format()
    timeout: float = 900.0


class Pulled(NamedTuple):
    """What a pull came to; `new` is False when the image was in the store already."""

    image: Image
    new: bool
    milliseconds: Dict[str, float]


def options_from(settings: Settings) -> PullOptions:
    """The pull's part of the site's settings."""
    return PullOptions(
        image_user=settings.image_user,
        form=Format(settings.squashfs_compression, settings.squashfs_level),
        timeout=settings.pull_timeout,
    )


def silent(progress: Progress) -> None:
    """Report progress to nobody."""


def pull(
    reference_text: str,
    store: Store,
    options: Optional[PullOptions] = None,
    on_progress: Report = silent,
) -> Pulled:
    """Resolve a reference anew and have its image in the store afterwards.

    One puller works on a reference and on an image at a time; the others wait and then find it.
    Raises UserError or SiteError with the reference in the message.
    """
    reference = parse_reference(reference_text)
    puller = _Puller(reference, store, options or PullOptions(), on_progress)
    ensure_store(store)
    with puller.lock(f"ref-{file_name(str(reference))}") as waited:
        image = puller.found_by_another() if waited else None
        if image is not None:
            return Pulled(image, new=False, milliseconds=puller.watch.milliseconds)
        resolved = puller.resolve()
        with puller.lock(f"image-{hex_digits(resolved.digest)}"):
            new = store.find_digest(resolved.digest) is None
            if new:
                puller.fetch(resolved)
            publish_link(store, reference, resolved.digest)
    image = store.read_image(resolved.digest, str(reference))
    return Pulled(image, new, puller.watch.milliseconds)


class _Puller:
    """One pull: its steps, its time and the locks that it holds."""

    def __init__(
        self, reference: Reference, store: Store, options: PullOptions, on_progress: Report
    ) -> None:
        self.reference = reference
        self.store = store
        self.options = options
        self.on_progress = on_progress
        self.watch = Stopwatch()
        self.started = time.time()
        self.deadline = time.monotonic() + options.timeout
        self.identity = find_identity(options.image_user)

    @property
    def seconds(self) -> float:
        """What is left of the site's patience."""
        return max(0.0, self.deadline - time.monotonic())

    def lock(self, name: str) -> ContextManager[bool]:
        return locked(
            self.store,
            name,
            self.seconds,
            lambda: self.on_progress(Progress("wait", str(self.reference), 0, 0)),
        )

    def found_by_another(self) -> Optional[Image]:
        """The image, if who held the lock before us has just resolved the reference."""
        link = self.store.find_link(self.reference)
        if link is None or link.resolved < self.started:
            return None
        return self.store.find_digest(link.digest, str(self.reference))

    def resolve(self) -> Resolved:
        self.on_progress(Progress("resolve", str(self.reference), 0, 0))
        with workspace(self.store, self.identity, self.seconds) as directory:
            told = work_as(
                self.identity,
                directory,
                lambda _: {"resolved": transport.resolve(self.reference)},
                self.on_progress,
                self.seconds,
            )
        self.watch.lap("resolve")
        return _resolved(told["resolved"])

    def fetch(self, resolved: Resolved) -> None:
        form = self.options.form

        def begin() -> Download:
            return transport.Download(self.reference, resolved, os.path.abspath("download"))

        with workspace(self.store, self.identity, self.seconds) as directory:
            told = work_as(
                self.identity,
                directory,
                lambda report: {"fetched": fetch(str(self.reference), begin, form, report)},
                self.on_progress,
                self.seconds,
            )
            fetched = Fetched(*told["fetched"])
            self.watch.milliseconds.update(fetched.milliseconds)
            self.watch.skip()
            made = f"{directory}/{OUTPUT}"
            document = self._document(resolved, fetched)
            publish_image(self.store, resolved.digest, made, document)
        self.watch.lap("publish")

    def _document(self, resolved: Resolved, fetched: Fetched) -> Dict[str, Any]:
        return {
            "reference": str(self.reference),
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


def _resolved(told: Any) -> Resolved:
    # What the worker says passed through a process that read foreign bytes: check it again.
    digest, (config, layers) = told
    check_digest(digest, "the image")
    return Resolved(digest, Manifest(Blob(*config), tuple(Blob(*layer) for layer in layers)))
