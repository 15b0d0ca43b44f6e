"""Transport: from a registry to a directory on disk, by skopeo and nothing else.

skopeo reads the site's registries.conf, policy.json and certificates; what it says when it fails
is sorted here into whose fault it is.
"""

from __future__ import annotations

import os
import re
import tempfile
from typing import IO, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

from hpcwrap import run
from hpcwrap.errors import DeniedError, HpcwrapError, SiteError, UserError
from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.digest import digest_of, hex_digits
from hpcwrap.image.manifest import (
    Blob,
    Manifest,
    choose_instance,
    is_index,
    parse_document,
    parse_manifest,
)
from hpcwrap.image.reference import Reference
from hpcwrap.image.worker import guarded

Rule = Tuple[str, Type[HpcwrapError], str, str]

# What containers/image and the registries say, in the order of trust in the wording.
RULES: Sequence[Rule] = (
    (r"no space left on device", SiteError, "the store is full", "remove images: hpcwrap rm"),
    (
        r"unauthorized|authentication required|access (to the resource is )?denied|status: 40[13]",
        DeniedError,
        "the registry does not give it to us without a password",
        "is the name right? private images need the site's help",
    ),
    (
        r"manifest unknown|name unknown|not known to registry|status: 404|404 \(?Not Found",
        UserError,
        "the registry does not have it",
        "check repository and tag",
    ),
    (
        r"refused|no such host|dial tcp|time(d )?out|deadline|unexpected EOF|reset|unreachable",
        SiteError,
        "the registry cannot be reached",
        "tell the administrator if it stays like this",
    ),
    (r"x509|certificate", SiteError, "the registry's certificate is not trusted", ""),
    (r"HTTP response to HTTPS", SiteError, "the registry has no TLS", "see registries.conf"),
    (r"policy|[Ss]ignature", SiteError, "the site's policy.json does not allow it", ""),
)


class Resolved(NamedTuple):
    """What a reference means now: the digest of the image for this machine, and its manifest."""

    digest: str
    manifest: Manifest


def resolve(reference: Reference, access: Access = ANONYMOUS) -> Resolved:
    """Ask the registry for the manifest, of an index for this machine's instance.

    Raises UserError or SiteError.
    """
    content = _raw_manifest(reference, reference.digest, access)
    digest = digest_of(content)
    if reference.digest and reference.digest != digest:
        raise SiteError(f"cannot trust the registry: it sent another image than {reference}")
    try:
        document = parse_document(content)
        if is_index(document):
            digest = choose_instance(document)
            document = parse_document(_raw_manifest(reference, digest, access))
        return Resolved(digest, parse_manifest(document))
    except UserError as error:
        raise UserError(
            f"cannot use the image {reference}: it {error.message}", error.hint
        ) from None


def _raw_manifest(reference: Reference, digest: Optional[str], access: Access) -> bytes:
    del access  # used from the next change on
    argv = ["inspect", "--raw", *_tls(reference, "--tls-verify"), _source(reference, digest)]
    try:
        return run.output(_skopeo(argv), env=_environment())
    except run.CommandError as error:
        raise translate(reference, error.stderr) from None


class Download:
    """A download under way; `directory` fills with blobs, each named by its digest when whole."""

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
        os.mkdir(directory)
        self._errors: IO[bytes] = tempfile.TemporaryFile(dir=".")  # noqa: SIM115
        argv = ["copy", "--quiet", "--preserve-digests", *_tls(reference, "--src-tls-verify")]
        argv += [_source(reference, resolved.digest), f"dir:{directory}"]
        self._skopeo = run.spawn(_skopeo(argv), env=_environment(), stderr=self._errors)

    def blob_path(self, blob: Blob) -> str:
        """Where a blob lies once it is whole: skopeo renames it to there."""
        return os.path.join(self.directory, hex_digits(blob.digest))

    def ended(self) -> bool:
        """Whether all is here.

        Raises UserError or SiteError when it failed.
        """
        code = self._skopeo.poll()
        if code is None:
            return False
        if code:
            self._errors.seek(0)
            raise translate(self.reference, self._errors.read().decode(errors="replace"))
        self._verify_manifest()
        return True

    def sizes(self) -> Dict[str, int]:
        """Bytes that are here of each layer, by digest.

        skopeo names a blob only when it is whole; the unfinished files are taken for the missing
        layers by size, the largest first, so single numbers are a guess and the sum is right.
        """
        partial = [_size(item) for item in self.unfinished()]
        whole = set(os.listdir(self.directory))
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
        return [x for x in os.scandir(self.directory) if x.name.startswith("dir-put-blob")]

    def _verify_manifest(self) -> None:
        with open(os.path.join(self.directory, "manifest.json"), "rb") as file:
            if digest_of(file.read()) != self.resolved.digest:
                raise SiteError(
                    f"cannot trust the registry: {self.reference} changed while it was pulled"
                )


def translate(reference: Reference, stderr: str) -> HpcwrapError:
    """What skopeo's stderr means, as one of our errors."""
    messages = re.findall(r'msg="((?:[^"\\]|\\.)*)"', stderr)
    text = messages[-1].replace('\\"', '"') if messages else run.last_line(stderr)
    for pattern, kind, meaning, hint in RULES:
        if re.search(pattern, text):
            return kind(f"cannot pull the image {reference}: {meaning}", hint)
    return SiteError(f"cannot pull the image {reference}: {text[:500]}")


def _skopeo(argv: List[str]) -> List[str]:
    return guarded([run.need_program("skopeo", "skopeo"), *argv])


def _environment() -> Dict[str, str]:
    # Passwords are looked for in XDG_RUNTIME_DIR and HOME; without these skopeo goes to
    # /run/containers, which root's skopeo makes with mode 0700 (containers-auth.json(5)).
    here = os.getcwd()
    return run.base_environment(HOME=here, XDG_RUNTIME_DIR=here, TMPDIR=here)


def _tls(reference: Reference, option: str) -> List[str]:
    return [f"{option}=false"] if reference.loopback else []


def _source(reference: Reference, digest: Optional[str]) -> str:
    # skopeo refuses a tag beside a digest; the digest says more.
    suffix = f"@{digest}" if digest else f":{reference.tag}"
    return f"docker://{reference.name}{suffix}"


def _size(item: os.DirEntry[str]) -> int:
    try:
        return item.stat().st_size
    except FileNotFoundError:
        return 0  # renamed to its digest a moment ago
