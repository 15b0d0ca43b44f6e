"""Manifests: what an image is made of, and which instance of it is for this machine.

OCI image-spec manifest.md and image-index.md, and Docker's schema 2 of the same shape.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from hpcwrap.errors import UserError
from hpcwrap.image.digest import check_digest

MAX_MANIFEST = 4 << 20
"""As much as a registry has to accept (OCI distribution-spec, "Pushing Manifests")."""

MAX_LAYERS = 1000

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}
"""The kernel's word for a machine → architecture and variant as registries have them (Go's)."""


class Blob(NamedTuple):
    """A blob that a manifest names; size in bytes."""

    digest: str
    size: int
    media_type: str


class Manifest(NamedTuple):
    """An image's configuration and its layers, lowest first."""

    config: Blob
    layers: Tuple[Blob, ...]


def is_index(document: Dict[str, Any]) -> bool:
    """Whether a document names instances for several machines instead of layers."""
    return isinstance(document.get("manifests"), list)


def parse_document(content: bytes) -> Dict[str, Any]:
    """Parse a manifest or an index.

    Raises UserError, whose message is a predicate of the image.
    """
    if len(content) > MAX_MANIFEST:
        raise UserError(f"has a manifest of {len(content)} bytes, more than {MAX_MANIFEST}")
    try:
        document = load_json(content)
    except ValueError as error:
        raise UserError(f"has a manifest that is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise UserError(
            "has a manifest of another version than 2", "push it again with a current tool"
        )
    return document


def load_json(content: bytes) -> Any:
    """Parse JSON from outside.

    Raises ValueError, for what is nested too deeply as well.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_manifest(document: Dict[str, Any]) -> Manifest:
    """Read configuration and layers of a manifest.

    Raises UserError, whose message is a predicate of the image.
    """
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise UserError("has a manifest without layers, or with too many")
    return Manifest(
        config=_parse_blob(document.get("config"), "its configuration"),
        layers=tuple(_parse_blob(layer, f"layer {n}") for n, layer in enumerate(layers, 1)),
    )


def choose_instance(document: Dict[str, Any], machine: Optional[str] = None) -> str:
    """The digest of an index's instance for a machine (this one; words of uname(2)).

    That may be another index, where this one does not say for which machines that is.  Raises
    UserError that lists what there is.
    """
    architecture, variant = ARCHITECTURES.get(machine or os.uname().machine, ("", ""))
    fitting: List[Tuple[int, Dict[str, Any]]] = []
    offered = set()
    for instance in document["manifests"]:
        platform = instance.get("platform") if isinstance(instance, dict) else None
        platform = platform if isinstance(platform, dict) else {}
        system = f"{_word(platform.get('os'))}/{_word(platform.get('architecture'))}"
        if system == f"linux/{architecture}":
            fitting.append((int(platform.get("variant", variant) != variant), instance))
        elif not platform and _is_nested(instance):
            fitting.append((2, instance))
        # BuildKit's attestations are no image for any machine.
        elif system != "unknown/unknown":
            offered.add(system)
    if not fitting:
        raise UserError(
            f"is not for this machine (linux/{architecture})",
            f"it is there for {', '.join(sorted(offered)) or 'none'}",
        )
    chosen = min(fitting, key=lambda pair: pair[0])[1]
    return check_digest(_word(chosen.get("digest")), "the instance for this machine")


def _word(value: Any) -> str:
    """A value that is to be one word; it may be shown on a terminal."""
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else "?"


def _is_nested(instance: Any) -> bool:
    return isinstance(instance, dict) and instance.get("mediaType") in INDEXES


def _parse_blob(blob: Any, what: str) -> Blob:
    size = blob.get("size") if isinstance(blob, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UserError(f"has a manifest in which {what} is missing")
    return Blob(
        digest=check_digest(_word(blob.get("digest")), what),
        size=size,
        media_type=_word(blob.get("mediaType")),
    )
