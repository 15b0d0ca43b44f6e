"""Layers and settings to an OCI image layout, a directory that skopeo reads.

OCI image specification 1.0: image-layout.md, manifest.md, config.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import Any, BinaryIO, Iterable, Mapping, NamedTuple, Sequence, cast

from clusterlib.errors import ToolError

from imagelib.commands import environment
from imagelib.layers import Entry, write_tar

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CREATED = "2023-06-10T00:00:00Z"
CHUNK = 1 << 20


class Layer(NamedTuple):
    """One layer to write, and the line in the image's history that it came by."""

    entries: Sequence[Entry]
    made_by: str


class Descriptor(NamedTuple):
    """A blob of the layout: media type, digest, size in bytes."""

    media_type: str
    digest: str
    size: int

    def document(self) -> dict[str, Any]:
        """As the specification spells it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


class DigestingWriter:
    """A file-like that hands on what is written and keeps its digest."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Hand on and count in."""
        self._hash.update(data)
        return self._output.write(data)

    def digest(self) -> str:
        """The digest of all that was written."""
        return f"sha256:{self._hash.hexdigest()}"


def write_layout(
    directory: str, layers: Iterable[Layer], settings: Mapping[str, Any], architecture: str
) -> str:
    """Write an image layout into the empty `directory`; the digest of its manifest."""
    blobs = os.path.join(directory, "blobs", "sha256")
    os.makedirs(blobs)
    descriptors, diff_ids, history = [], [], []
    for layer in layers:
        descriptor, diff_id = write_layer(blobs, layer.entries)
        descriptors.append(descriptor.document())
        diff_ids.append(diff_id)
        history.append({"created": CREATED, "created_by": layer.made_by})
    config = {
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_document(blobs, CONFIG, config).document(),
        "layers": descriptors,
    }
    top = write_document(blobs, MANIFEST, manifest)
    write_json(os.path.join(directory, "oci-layout"), {"imageLayoutVersion": "1.0.0"})
    index = {"schemaVersion": 2, "manifests": [top.document()]}
    write_json(os.path.join(directory, "index.json"), index)
    return top.digest


def write_layer(blobs: str, entries: Iterable[Entry]) -> tuple[Descriptor, str]:
    """Write one layer, compressed by pigz(1); its descriptor, and the digest of the plain tar."""
    part = os.path.join(blobs, "part")
    with open(part, "wb") as output:
        # --no-name leaves name and time out of the header, and the number of processors does not
        # change what pigz writes: the same entries give the same digest.
        process = subprocess.Popen(
            ["pigz", "--no-name", "-6", "--stdout"],
            stdin=subprocess.PIPE,
            stdout=output,
            env=environment(),
        )
        assert process.stdin is not None
        plain = DigestingWriter(cast(BinaryIO, process.stdin))
        write_tar(entries, cast(BinaryIO, plain))
        process.stdin.close()
        if process.wait() != 0:
            raise ToolError(f"cannot compress a layer: pigz ended with {process.returncode}")
    return publish(part, blobs, LAYER), plain.digest()


def publish(part: str, blobs: str, media_type: str) -> Descriptor:
    """Give a finished blob its name."""
    whole = hashlib.sha256()
    with open(part, "rb") as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
    size = os.path.getsize(part)
    os.rename(part, os.path.join(blobs, whole.hexdigest()))
    return Descriptor(media_type, f"sha256:{whole.hexdigest()}", size)


def write_document(blobs: str, media_type: str, document: Mapping[str, Any]) -> Descriptor:
    """Write a JSON document as a blob."""
    part = os.path.join(blobs, "part")
    write_json(part, document)
    return publish(part, blobs, media_type)


def write_json(path: str, document: Mapping[str, Any]) -> None:
    """Write a JSON file, the same bytes for the same document."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, sort_keys=True, separators=(",", ":"))
