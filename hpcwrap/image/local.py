"""Images that lie on this machine: from the reader's stream to blobs, as of a registry's image.

Runs in a worker's process, in its directory.  Two steps, because the store may have the image
already: `resolve_local` stores the stream and finds out which image it is, and `LocalDownload`
passes it on to be converted.  What has a manifest keeps it; a root file system gets one, with the
stored file as its only layer, so that the same file is the same image everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from typing import IO, Any, BinaryIO, Dict, List, Optional, Sequence

from hpcwrap import run
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image import detect
from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.apptainer import variables_of
from hpcwrap.image.archive import purify, unpack_skopeo
from hpcwrap.image.complaints import Rule, failure
from hpcwrap.image.digest import ALGORITHM, digest_of, hex_digits
from hpcwrap.image.manifest import (
    ARCHITECTURES,
    MAX_MANIFEST,
    Blob,
    Manifest,
    load_json,
    parse_document,
    parse_manifest,
)
from hpcwrap.image.plan import MAX_UNPACKED, check_size
from hpcwrap.image.reader import SKOPEO_DIRECTORY, Stream
from hpcwrap.image.sif import Part, parse_sif
from hpcwrap.image.source import FILE, Source
from hpcwrap.image.transport import Resolved
from hpcwrap.image.worker import MAKE_ROOM, NO_SPACE, STORE_FULL, Progress, Report, guarded

STORED = "stream"
ARCHIVE = "archive"
BLOBS = "download"
SQUASHFS = "squashfs"
"""Names in the working directory: the stream as it came; an archive, decompressed; the blobs; a
squashfs instead of a layer."""

PART = "part"
"""The tar stream of a squashfs, among the blobs, while it is written."""

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
TAR_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"

_CHUNK = 1 << 20
_REPORT_EVERY = 16 << 20

NO_ROOM = (f"cannot store the image: {STORE_FULL}", MAKE_ROOM)

# What containers/image says of an archive; the meanings for users are predicates of the image.
RULES: Sequence[Rule] = (
    Rule(
        r"no space left|[Qq]uota exceeded",
        SiteError,
        *NO_ROOM,
    ),
    Rule(
        r"expected 1 item, got|more than one (image|manifest)",
        UserError,
        "is an archive of several images",
        "say which: a colon and the image's name after the path",
    ),
    Rule(
        r"no descriptor found for reference|ag \"?.*\"? not found|no image found in archive",
        UserError,
        "is an archive without an image of that name",
    ),
    Rule(r"no image found in (manifest list|image index)", UserError, "is not for this machine"),
    Rule(
        r"rejected by policy|signature was required|rejected: ",
        UserError,
        "is not allowed by the site's policy.json",
    ),
)


def resolve_local(
    stream: Stream, source: Source, report: Report, access: Access = ANONYMOUS
) -> Resolved:
    """Store what comes out of the stream in the working directory, and say which image it is.

    Raises UserError when it is none, SiteError when the store is full.
    """
    try:
        blob = _store(stream, source, report)
        os.mkdir(BLOBS)
        return _resolve(_kind(stream, source), blob, source, access)
    except UserError as error:
        message = f"cannot use the image {source}: it {error.message}"
        raise UserError(message, error.hint) from None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise SiteError(*NO_ROOM) from None


class LocalDownload:
    """The blobs of an image that `resolve_local` stored in the working directory.

    Of a squashfs, the tar stream that is its layer is written now.
    """

    def __init__(self, source: Source, resolved: Resolved) -> None:
        self.source = source
        self.resolved = resolved
        self._child: Optional[run.Process] = None
        self._errors: IO[bytes] = tempfile.TemporaryFile(dir=".")  # noqa: SIM115
        if os.path.exists(SQUASHFS):
            # With the root's own owner and mode, which it leaves out otherwise (sqfs2tar(1)).
            argv = [run.need_program("sqfs2tar", "squashfs-tools-ng"), "--root-becomes", "."]
            with open(os.path.join(BLOBS, PART), "wb") as part:
                self._child = run.spawn(
                    guarded([*argv, SQUASHFS]), stdout=part, stderr=self._errors
                )

    def blob_path(self, blob: Blob) -> str:
        """Where a blob lies once it is whole."""
        return os.path.join(BLOBS, hex_digits(blob.digest))

    def ended(self) -> bool:
        """Whether all is here.

        Raises UserError or SiteError.
        """
        if self._child is None:
            return True
        code = self._child.poll()
        # A squashfs of zeros is a thousandth of its tar stream, which is no measure for itself.
        check_size(os.stat(os.path.join(BLOBS, PART)).st_size, os.stat(SQUASHFS).st_size)
        if code is None:
            return False
        if code:
            raise self._failed()
        self._child = None
        os.rename(os.path.join(BLOBS, PART), self.blob_path(self.resolved.manifest.layers[0]))
        return True

    def processes(self) -> List[run.Process]:
        """Those whose end is the next thing to happen."""
        return [self._child] if self._child else []

    def notice(self) -> str:
        """Nothing: a file is read as fast as it can be."""
        return ""

    def sizes(self) -> Dict[str, int]:
        """Bytes that are here of each layer, by digest."""
        return {
            blob.digest: blob.size
            for blob in self.resolved.manifest.layers
            if os.path.exists(self.blob_path(blob))
        }

    def unfinished(self) -> List[os.DirEntry[str]]:
        """The file that gets a blob's name when it is whole."""
        return [item for item in os.scandir(BLOBS) if item.name == PART]

    def _failed(self) -> HpcwrapError:
        self._errors.seek(0)
        text = run.last_line(self._errors.read(1 << 16).decode(errors="replace"))
        if any(os.strerror(number) in text for number in NO_SPACE):
            return SiteError(*NO_ROOM)
        return UserError(f"the image {self.source} is broken: its squashfs is damaged: {text}")


def _store(stream: Stream, source: Source, report: Report) -> Blob:
    hasher = hashlib.sha256()
    size = told = 0
    report(Progress("read", str(source), 0, stream.size))
    with open(STORED, "xb", buffering=0) as file:
        while True:
            data = os.read(stream.pipe, _CHUNK)
            if not data:
                break
            hasher.update(data)
            _write(file, data)
            size += len(data)
            if size > MAX_UNPACKED:
                raise UserError(f"has more than {MAX_UNPACKED} bytes")
            if size - told >= _REPORT_EVERY:
                told = size
                report(Progress("read", str(source), size, stream.size))
    report(Progress("read", str(source), size, size))
    return Blob(f"{ALGORITHM}:{hasher.hexdigest()}", size, TAR_TYPE)


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file.fileno(), view) :]


def _kind(stream: Stream, source: Source) -> str:
    """What the stored stream is; what the user said it is must be true."""
    if stream.kind != FILE:
        return stream.kind
    found = detect.kind_of(STORED, source.transport)
    if source.transport not in (FILE, found):
        raise UserError(
            f"is not {source.transport}: but {found}:", "name the file by its path alone"
        )
    return found


def _resolve(kind: str, blob: Blob, source: Source, access: Access) -> Resolved:
    if kind == SKOPEO_DIRECTORY:
        return _resolve_directory()
    if kind in (detect.OCI_ARCHIVE, detect.DOCKER_ARCHIVE):
        return _resolve_archive(kind, source, access)
    if kind == detect.SIF:
        return _resolve_sif(blob)
    return _resolve_squashfs(blob) if kind == detect.SQUASHFS else _resolve_tar(blob)


def _resolve_tar(blob: Blob) -> Resolved:
    os.rename(STORED, os.path.join(BLOBS, hex_digits(blob.digest)))
    return _made(blob, {})


def _resolve_squashfs(blob: Blob) -> Resolved:
    os.rename(STORED, SQUASHFS)
    return _made(blob, _recovered_config())


def _resolve_sif(blob: Blob) -> Resolved:
    with open(STORED, "rb") as file:
        sif = parse_sif(file)
        _copy_part(file, sif.root)
        config = _parse_config(file, sif.config) if sif.config else {}
    os.unlink(STORED)
    return _made(blob, config or _recovered_config())


def _copy_part(file: BinaryIO, part: Part) -> None:
    with open(SQUASHFS, "xb") as target:
        offset, end = part.offset, part.offset + part.size
        while offset < end:
            offset += os.sendfile(target.fileno(), file.fileno(), offset, end - offset)


def _parse_config(file: BinaryIO, part: Part) -> Dict[str, Any]:
    """The part of an OCI configuration that tells of processes, which Apptainer keeps alone."""
    try:
        config = load_json(os.pread(file.fileno(), min(part.size, MAX_MANIFEST), part.offset))
    except ValueError as error:
        raise UserError(f"has a configuration that cannot be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _recovered_config() -> Dict[str, Any]:
    variables = variables_of(SQUASHFS)
    return {"Env": variables} if variables else {}


def _made(layer: Blob, config: Dict[str, Any]) -> Resolved:
    """The image of one layer: its configuration becomes a blob, its manifest gives the digest."""
    architecture = ARCHITECTURES.get(os.uname().machine, (os.uname().machine, ""))[0]
    about = {"architecture": architecture, "os": "linux", "config": config}
    content = json.dumps(about, sort_keys=True).encode()
    blob = Blob(digest_of(content), len(content), CONFIG_TYPE)
    with open(os.path.join(BLOBS, hex_digits(blob.digest)), "wb") as file:
        file.write(content)
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(blob),
        "layers": [_descriptor(layer)],
    }
    digest = digest_of(json.dumps(document, sort_keys=True).encode())
    return Resolved(digest, Manifest(blob, (layer,)))


def _descriptor(blob: Blob) -> Dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def _resolve_archive(kind: str, source: Source, access: Access) -> Resolved:
    detect.make_plain(STORED, ARCHIVE)
    if kind == detect.OCI_ARCHIVE:
        purify(ARCHIVE, STORED)
        os.rename(STORED, ARCHIVE)
    here = os.getcwd()
    name = f":{source.name}" if source.name else ""
    argv = [run.need_program("skopeo", "skopeo"), "--tmpdir", here]
    argv += ["--policy", access.policy] if access.policy else []
    argv += ["copy", "--quiet", "--preserve-digests", f"{kind}:{ARCHIVE}{name}", f"dir:{BLOBS}"]
    environment = run.base_environment(HOME=here, XDG_RUNTIME_DIR=here, TMPDIR=here)
    try:
        run.output(guarded(argv), env=environment)
    except run.CommandError as error:
        raise _complaint(failure(error.stderr)) from None
    os.unlink(ARCHIVE)
    return _stored_manifest()


def _complaint(text: str) -> HpcwrapError:
    for rule in RULES:
        if re.search(rule.pattern, text):
            return rule.kind(rule.meaning, rule.hint)
    return UserError(f"is broken: {text[:500]}")


def _resolve_directory() -> Resolved:
    unpack_skopeo(STORED, BLOBS)
    os.unlink(STORED)
    return _stored_manifest()


def _stored_manifest() -> Resolved:
    try:
        with open(os.path.join(BLOBS, "manifest.json"), "rb") as file:
            content = file.read(MAX_MANIFEST + 1)
    except FileNotFoundError:
        raise UserError("has no manifest") from None
    manifest = parse_manifest(parse_document(content))
    missing = [blob for blob in (manifest.config, *manifest.layers) if not _is_here(blob)]
    if missing:
        raise UserError(f"is broken: its {missing[0].digest} is missing")
    return Resolved(digest_of(content), manifest)


def _is_here(blob: Blob) -> bool:
    return os.path.exists(os.path.join(BLOBS, hex_digits(blob.digest)))
