"""A pull whose digest is known before anything is downloaded: from a registry."""

from __future__ import annotations

import os
from functools import partial
from typing import (
    Tuple,
    cast,
)

from hpcwrap.config import Settings
from hpcwrap.errors import UserError
from hpcwrap.image import credentials, transport
from hpcwrap.image.access import Access
from hpcwrap.image.download import Download
from hpcwrap.image.layers import prepare_cache
from hpcwrap.image.puller import Coming, Puller, as_resolved
from hpcwrap.image.reference import Reference
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Image
from hpcwrap.image.transport import Resolved
from hpcwrap.image.worker import Progress
from hpcwrap.image.workspace import workspace


class RegistryPull(Puller):
    """A pull whose digest is known before anything is downloaded."""

    def bring(self) -> bool:
        """Ask the registry, and pull what the store lacks."""
        resolved, access = self.ask()

        def begin() -> Download:
            directory = os.path.abspath("download")
            return transport.Download(self.reference, resolved, directory, access)

        place = workspace(self.store, self.identity, self.seconds)
        has_shown = partial(self.has_shown, private=access.private)
        return self.settle(resolved, Coming(begin, place, access.private, has_shown))

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
        """The source's reference."""
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
        """Ask with a password after `refused`; what is refused again gets the first answer."""
        try:
            return self.resolve(access)
        except UserError:
            raise refused from None

    def resolve(self, access: Access) -> Resolved:
        """Ask what the reference is now, in a worker."""
        self.on_progress(Progress("resolve", self.name, 0, 0))
        with workspace(self.store, self.identity, self.seconds) as directory:
            told = self.work(
                directory,
                lambda _: {"resolved": transport.resolve(self.reference, access)},
                "resolve",
                meanwhile=load_convert,
            )
        return as_resolved(told["resolved"])

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


def load_convert() -> None:
    """Import what will be needed once the registry has answered; it takes as long as that."""
    from hpcwrap.image import convert  # noqa: F401
