"""Exchange images with other programs and other sites, as OCI archives.

    export   squashfs ─▶ sqfs2tar ─▶ zstd ─▶ one layer in a tar file, with its configuration
    import   is a pull of oci-archive:FILE: root mounts no squashfs that it did not make

An archive has one layer, because the squashfs is all that the store keeps.  It is an OCI image
layout (image-spec image-layout.md) and has Docker's manifest.json, too, for `docker load`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tarfile
import tempfile
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from hpcwrap import run
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image import lease
from hpcwrap.image.digest import ALGORITHM, digest_of, hex_digits
from hpcwrap.image.manifest import ARCHITECTURES, MAX_MANIFEST
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Image, Store, read_document
from hpcwrap.image.worker import NO_SPACE, guarded, wide_pipe

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

BLOCK = tarfile.BLOCKSIZE
READ = 1 << 20
LEVEL = "-3"
INDEX = "index.json"
DIRECTORIES = ("blobs/", f"blobs/{ALGORITHM}/")
"""Have to be in the archive: skopeo gives root those that it makes itself, which only root may."""

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"

OnBytes = Callable[[int], None]
"""Is told how many bytes of the plain tar stream are done."""


class Exported(NamedTuple):
    """An archive that was written: digest of its manifest, and its size in bytes."""

    digest: str
    size: int


class Layer(NamedTuple):
    """The one layer: digest and size of the blob, digest of the plain tar stream."""

    digest: str
    size: int
    plain: str


def export(store: Store, image: Image, path: str, on_bytes: Optional[OnBytes] = None) -> Exported:
    """Write an image to a new file.

    Raises UserError when the file exists or cannot be written, SiteError when a program fails.
    """
    document = read_document(store.document_path(image.digest))
    with _leased(store, image.digest), _new_file(path, private=bool(image.uids)) as file:
        for directory in DIRECTORIES:
            file.write(_header(directory, 0))
        start = file.tell()
        file.write(bytes(BLOCK))  # the layer's header, whose name is known when its content is
        layer = _write_layer(image.squashfs, file, on_bytes)
        _pad(file)
        digest = _write_documents(file, image, document.get("config") or {}, layer)
        file.seek(start)
        file.write(_header(_blob_path(layer.digest), layer.size))
    return Exported(digest, os.stat(path).st_size)


def name_in(path: str) -> str:
    """The reference under which an archive's one image was exported.

    Raises UserError when the file is no archive of hpcwrap's, or a name in it is none.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            file = archive.extractfile(INDEX)
            content = file.read(MAX_MANIFEST) if file else b""
        (manifest,) = json.loads(content)["manifests"]
        name = str(manifest["annotations"][REF_NAME])
        return str(parse_source(name))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, KeyError, TypeError, HpcwrapError):
        raise UserError(
            f"cannot tell under which name to keep the image in {path}",
            f"name it: hpcwrap image import {path} NAME",
        ) from None


@contextmanager
def _leased(store: Store, digest: str) -> Iterator[None]:
    holder = (os.uname().nodename, f"{lease.EXPORT}{os.getpid()}")
    lease.hold(store, digest, *holder)
    try:
        yield
    finally:
        lease.drop(store, digest, *holder)


@contextmanager
def _new_file(path: str, *, private: bool) -> Iterator[IO[bytes]]:
    """The file, which goes again if it does not become whole; a private image is root's alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600 if private else 0o666)
    except OSError as error:
        hint = "name a new file" if error.errno == errno.EEXIST else ""
        raise UserError(f"cannot write {path}: {error.strerror}", hint) from None
    try:
        with open(descriptor, "wb") as file:
            yield file
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(path)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        raise


def _write_layer(squashfs: str, file: IO[bytes], on_bytes: Optional[OnBytes]) -> Layer:
    """Unpack and compress the squashfs into the file; both digests on the way."""
    plain, blob = hashlib.sha256(), hashlib.sha256()
    with tempfile.TemporaryFile() as errors:
        unpacked, to_us = wide_pipe()
        unpack = run.spawn(guarded(_unpacker(squashfs)), stdout=to_us, stderr=errors)
        os.close(to_us)
        to_compress, feed = wide_pipe()
        compressed, to_us = wide_pipe()
        argv = guarded(_compressor())
        compress = run.spawn(argv, stdin=to_compress, stdout=to_us, stderr=errors)
        os.close(to_compress)
        os.close(to_us)
        feeder = threading.Thread(target=_feed, args=(unpacked, feed, plain, on_bytes))
        feeder.start()
        try:
            size = _copy(compressed, file, blob)
        finally:
            # A full disk ends the compressor by its pipe, that ends the feeder, that the unpacker.
            os.close(compressed)
            feeder.join()
            codes = [unpack.wait(), compress.wait()]
        if any(codes):
            raise _failed(squashfs, errors)
    return Layer(f"{ALGORITHM}:{blob.hexdigest()}", size, f"{ALGORITHM}:{plain.hexdigest()}")


def _unpacker(squashfs: str) -> List[str]:
    program = run.need_program("sqfs2tar", "squashfs-tools-ng")
    # Without "." the mode and the owner of the root directory are lost (sqfs2tar(1)).
    return [program, "--root-becomes", ".", squashfs]


def _compressor() -> List[str]:
    return [run.need_program("zstd", "zstd"), "-cq", "-T0", LEVEL]


def _feed(source: int, target: int, plain: Hash, on_bytes: Optional[OnBytes]) -> None:
    done = 0
    with suppress(BrokenPipeError), open(source, "rb") as tar, open(target, "wb") as pipe:
        while chunk := tar.read(READ):
            plain.update(chunk)
            pipe.write(chunk)
            done += len(chunk)
            if on_bytes:
                on_bytes(done)


def _copy(source: int, file: IO[bytes], blob: Hash) -> int:
    size = 0
    while chunk := os.read(source, READ):
        blob.update(chunk)
        file.write(chunk)
        size += len(chunk)
    return size


def _failed(squashfs: str, errors: IO[bytes]) -> SiteError:
    errors.seek(0)
    said = run.last_line(errors.read(1 << 16).decode(errors="replace"))
    return SiteError(f"cannot export {squashfs}: {said}", "hpcwrap image verify checks the image")


def _write_documents(file: IO[bytes], image: Image, config: Dict[str, Any], layer: Layer) -> str:
    """Write configuration, manifest and index; the digest of the manifest."""
    names = _names(image.reference)
    configuration = _configuration(config, layer)
    manifest = _manifest(image, configuration, layer)
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{**_blob(MANIFEST_TYPE, manifest), "annotations": names}],
    }
    docker = {
        "Config": _blob_path(digest_of(configuration)),
        "RepoTags": [names[REF_NAME]] if REF_NAME in names else [],
        "Layers": [_blob_path(layer.digest)],
    }
    files = {
        _blob_path(digest_of(configuration)): configuration,
        _blob_path(digest_of(manifest)): manifest,
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "manifest.json": _json([docker]),
        INDEX: _json(index),
    }
    for name, content in files.items():
        file.write(_header(name, len(content)))
        file.write(content)
        _pad(file)
    file.write(bytes(2 * BLOCK))
    return digest_of(manifest)


def _names(reference: str) -> Dict[str, str]:
    """The names under which other programs keep the image; none for what came from a file."""
    with suppress(UserError):
        source = parse_source(reference)
        if source.reference is not None and source.reference.tag:
            # A tag alone: with a digest in it, podman takes it for no name.
            name = source.reference._replace(digest=None).full
            return {REF_NAME: name, CONTAINERD_NAME: name}
    return {}


def _configuration(config: Dict[str, Any], layer: Layer) -> bytes:
    machine = os.uname().machine
    architecture, variant = ARCHITECTURES.get(machine, (machine, ""))
    return _json(
        {
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.plain]},
            "history": [{"created_by": "hpcwrap image export"}],
        }
    )


def _manifest(image: Image, configuration: bytes, layer: Layer) -> bytes:
    blob = {"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size}
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _blob(CONFIG_TYPE, configuration),
            "layers": [blob],
            # What the image was before its layers became one.
            "annotations": {BASE_NAME: image.reference, BASE_DIGEST: image.digest},
        }
    )


def _blob(media_type: str, content: bytes) -> Dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _blob_path(digest: str) -> str:
    return f"blobs/{ALGORITHM}/{hex_digits(digest)}"


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _header(name: str, size: int) -> bytes:
    # One block whatever the size: GNU's form has numbers above 8 GiB in the field itself.
    member = tarfile.TarInfo(name)
    member.size = size
    if name in DIRECTORIES:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    return member.tobuf(tarfile.GNU_FORMAT)


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % BLOCK))
