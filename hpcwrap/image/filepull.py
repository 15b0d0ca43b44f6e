"""A pull of what lies on this machine: its digest is known when all of it has been read."""

from __future__ import annotations

from contextlib import nullcontext
from typing import (
    Optional,
    Tuple,
)

from hpcwrap import run
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.download import Download
from hpcwrap.image.local import LocalDownload, resolve_local
from hpcwrap.image.puller import Coming, Puller, as_resolved
from hpcwrap.image.reader import open_as, stamp_as
from hpcwrap.image.transport import Resolved
from hpcwrap.image.workspace import workspace


class FilePull(Puller):
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
        """Whether the image is for the user alone."""
        named = self.options.named_by_user and self.options.user is not None
        return named and not self.is_shared()

    def has_arrived(self) -> bool:
        """Never by another's work alone: what a path is depends on the node and on who asks."""
        return False

    def bring(self) -> bool:
        """Read it, unless it has not changed since it was read last."""
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
        """Read it; whether the image is new."""
        with workspace(self.store, self.identity, self.seconds) as directory:
            resolved, stamp = self.read(directory)

            def begin() -> Download:
                return LocalDownload(self.source, resolved)

            # All of it was read already, and compared with its digests.
            download = Coming(begin, nullcontext(directory), self.private, lambda _: True)
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
        return as_resolved(told["resolved"]), stream.stamp
