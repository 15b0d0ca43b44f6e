"""Transport: from a registry to a directory on disk, by skopeo and nothing else."""

from __future__ import annotations

import os
import tempfile
from typing import IO, Any, Callable, Dict, List, NamedTuple, Optional, Tuple, TypeVar

from hpcwrap import run
from hpcwrap.errors import SiteError, UserError
from hpcwrap.human import format_size
from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.digest import ALGORITHM, digest_of, hex_digits
from hpcwrap.image.layers import keep, offer, trim
from hpcwrap.image.manifest import (
    MAX_MANIFEST,
    Blob,
    Manifest,
    choose_instance,
    is_index,
    parse_document,
    parse_manifest,
)
from hpcwrap.image.reference import Reference
from hpcwrap.image.skopeo import Errand, Skopeo, finish
from hpcwrap.image.worker import MAKE_ROOM, STORE_FULL

In = TypeVar("In")
Out = TypeVar("Out")

MAX_NESTED = 3
"""How deep an index may be in others: one in another is allowed, and never seen deeper."""


class Resolved(NamedTuple):
    """What a reference means now: the digest of the image for this machine, and its manifest."""

    digest: str
    manifest: Manifest


def resolve(reference: Reference, access: Access = ANONYMOUS) -> Resolved:
    """Ask the registry for the manifest, of an index for this machine's instance.

    Raises DeniedError when the registry wants a password, or another one; UserError or SiteError
    for everything else.
    """
    digest, document = _ask(reference, reference.digest, access)
    for _ in range(MAX_NESTED):
        if is_index(document):
            instance = _read(reference, choose_instance, document)
            digest, document = _ask(reference, instance, access)
    return Resolved(digest, _read(reference, parse_manifest, document))


class Download:
    """A download under way; `directory` becomes an OCI image layout (image-layout.md).

    Each blob has its digest's name in it when it is whole and what its digest says: skopeo has
    compared them.  An attempt that fails leaves the whole ones to the next, and to the layer cache.
    """

    def __init__(
        self,
        reference: Reference,
        resolved: Resolved,
        directory: str,
        access: Access = ANONYMOUS,
    ) -> None:
        self.reference = reference
        self.resolved = resolved
        self.directory = directory
        self.access = access
        self._blobs = os.path.join(directory, "blobs", ALGORITHM)
        os.makedirs(self._blobs)
        self._kept = {blob.digest for blob in self._offer()}
        self._check_room()
        self._skopeo = Skopeo(self._errand(), on_retry=self._sweep)

    def blob_path(self, blob: Blob) -> str:
        """Where a blob lies once it is whole: skopeo renames it to there."""
        return os.path.join(self._blobs, hex_digits(blob.digest))

    def ended(self) -> bool:
        """Whether all is here.

        Raises UserError or SiteError when it failed for good.
        """
        self._stop_what_does_not_end()
        ended = self._skopeo.ended()
        self._keep()
        if ended:
            self._check_all_is_here()
        return ended

    def processes(self) -> List[run.Process]:
        """Those whose end is the next thing to happen."""
        return self._skopeo.processes()

    def notice(self) -> str:
        """Why nothing comes just now, for a person; "" while something does."""
        return self._skopeo.notice()

    def sizes(self) -> Dict[str, int]:
        """Bytes that are here of each layer, by digest.

        skopeo names a blob only when it is whole; the unfinished files are taken for the missing
        layers by size, the largest first, so single numbers are a guess and the sum is right.
        """
        partial = [_size(item) for item in self.unfinished()]
        whole = set(os.listdir(self._blobs))
        layers = {blob.digest: blob.size for blob in self.resolved.manifest.layers}
        missing = sorted(
            (digest for digest in layers if hex_digits(digest) not in whole),
            key=lambda digest: -layers[digest],
        )
        done = {digest: size for digest, size in layers.items() if hex_digits(digest) in whole}
        for digest, size in zip(missing, sorted(partial, reverse=True)):
            done[digest] = min(size, layers[digest])
        return done

    def unfinished(self) -> List[os.DirEntry[str]]:
        """The files to which skopeo still appends: whose they are is known when it renames them."""
        return [x for x in os.scandir(self.directory) if x.name.startswith("oci-put-blob")]

    def _errand(self) -> Errand:
        # Our manifest is compared already; a layout takes OCI's media types only, so skopeo writes
        # a manifest of its own for Docker's.  Layers come as they are.
        words = ["copy", "--quiet", "--remove-signatures", "--dest-oci-accept-uncompressed-layers"]
        words += _tls(self.reference, "--src-tls-verify")
        words += [_source(self.reference, self.resolved.digest), f"oci:{self.directory}"]
        return Errand(
            self.reference,
            self.access,
            words,
            moved=lambda: sum(self.sizes().values()),
            whole=lambda: len(os.listdir(self._blobs)),
            busy=self._is_syncing,
        )

    def _is_syncing(self) -> bool:
        """Whether all of a blob is here: skopeo has it brought to the disk, which may be slow."""
        sizes = {blob.size for blob in self.resolved.manifest.layers}
        return any(_size(item) in sizes for item in self.unfinished())

    def _check_room(self) -> None:
        """Raise SiteError for an image that the disk has no room for, before it is full."""
        config, layers = self.resolved.manifest
        sizes = {blob.digest: blob.size for blob in (config, *layers)}
        needed = sum(size for digest, size in sizes.items() if digest not in self._kept)
        disk = os.statvfs(self.directory)
        if needed > disk.f_bavail * disk.f_frsize:
            raise SiteError(
                f"cannot pull the image {self.reference}: {STORE_FULL}: it has no room for"
                f" {format_size(needed)}",
                MAKE_ROOM,
            )

    def _stop_what_does_not_end(self) -> None:
        """Raise SiteError for a blob that is larger than any is said to be.

        skopeo compares sizes at the end, to which a registry need not come before the disk is full.
        """
        config, layers = self.resolved.manifest
        # A configuration that is written anew as OCI's (see _errand) may be larger than it was.
        most = max(blob.size for blob in (config, *layers)) + MAX_MANIFEST
        if any(_size(item) > most for item in self.unfinished()):
            self._skopeo.stop()
            raise _untrusted(self.reference)

    def _sweep(self) -> None:
        """Remove what an attempt that failed has left unfinished."""
        for item in self.unfinished():
            os.unlink(item.path)

    def _check_all_is_here(self) -> None:
        config, layers = self.resolved.manifest
        if not os.path.exists(self.blob_path(config)):
            self._fetch_config(config)
        missing = [blob for blob in layers if not os.path.exists(self.blob_path(blob))]
        if missing:
            raise UserError(
                f"cannot use the image {self.reference}: its layer {missing[0].digest} is not in"
                " the registry but elsewhere",
                "push it again with all its layers",
            )

    def _fetch_config(self, config: Blob) -> None:
        # A configuration of Docker's was written anew, as OCI's, under another digest.
        content = inspect(self.reference, self.resolved.digest, self.access, "--config")
        if digest_of(content) != config.digest:
            raise _untrusted(self.reference)
        with open(self.blob_path(config), "wb") as file:
            file.write(content)

    def _offer(self) -> List[Blob]:
        cache, manifest = self.access.cache, self.resolved.manifest
        return offer(cache, {manifest.config, *manifest.layers}, self._blobs) if cache else []

    def _keep(self) -> None:
        """Have the cache keep what has become whole, for the next pull if this one is killed."""
        if not self.access.cache or self.access.private:
            return
        manifest = self.resolved.manifest
        fresh = [
            blob
            for blob in {manifest.config, *manifest.layers}
            if blob.digest not in self._kept and os.path.exists(self.blob_path(blob))
        ]
        if fresh:
            keep(self.access.cache, fresh, self._blobs)
            trim(self.access.cache, self.access.cache_limit)
            self._kept.update(blob.digest for blob in fresh)


def inspect(reference: Reference, digest: Optional[str], access: Access, *options: str) -> bytes:
    """The manifest as the registry has it, or with --config the configuration.

    Raises UserError or SiteError.
    """
    words = ["inspect", "--raw", *options, *_tls(reference, "--tls-verify")]
    words.append(_source(reference, digest))
    with tempfile.TemporaryFile(dir=".") as stdout:
        finish(Errand(reference, access, words, lambda: _length(stdout), stdout=stdout))
        stdout.seek(0)
        return stdout.read()


def _ask(reference: Reference, digest: Optional[str], access: Access) -> Tuple[str, Dict[str, Any]]:
    """The manifest or index that a reference, or a digest beside its name, means now."""
    content = inspect(reference, digest, access)
    found = digest_of(content)
    # inspect --raw prints what came; copy compares it, but what we read of it comes from here.
    if digest and found != digest:
        raise _untrusted(reference)
    return found, _read(reference, parse_document, content)


def _read(reference: Reference, parse: Callable[[In], Out], content: In) -> Out:
    """Have something parsed whose errors are predicates of the image."""
    try:
        return parse(content)
    except UserError as error:
        raise UserError(
            f"cannot use the image {reference}: it {error.message}", error.hint
        ) from None


def _untrusted(reference: Reference) -> SiteError:
    return SiteError(
        f"cannot pull the image {reference}: a digest did not match what the registry sent",
        "somebody changed it, there or on its way",
    )


def _tls(reference: Reference, option: str) -> List[str]:
    return [f"{option}=false"] if reference.loopback else []


def _source(reference: Reference, digest: Optional[str]) -> str:
    # skopeo refuses a tag beside a digest; the digest says more.
    suffix = f"@{digest}" if digest else f":{reference.tag}"
    return f"docker://{reference.name}{suffix}"


def _length(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _size(item: os.DirEntry[str]) -> int:
    try:
        return item.stat().st_size
    except FileNotFoundError:
        return 0  # renamed to its digest a moment ago
