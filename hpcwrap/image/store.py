"""The store: which image is where.  Reading only, and cheap: the warm prolog looks here.

    STORE/images/<hex>.sqsh     the squashfs of an image, named by the digest of its manifest
    STORE/images/<hex>.json     its configuration, where it came from, its sizes
    STORE/refs/<reference>      reference → digest, and when that was resolved
    STORE/locks/                one puller per reference and image (pull.py)
    STORE/tmp/                  work of pulls under way (workspace.py)

Everything appears by rename; an image exists when both of its files do.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from hpcwrap.image.digest import ALGORITHM, hex_digits, is_digest
from hpcwrap.image.reference import Reference, parse_reference

VERSION = 1
"""Of the documents in the store; one of another version counts as broken."""

MAX_DOCUMENT = 16 << 20
MAX_FILE_NAME = 200

Document = Dict[str, Any]


class ImageConfig(NamedTuple):
    """What an image says about its processes (OCI image-spec config.md); env is "K=V" strings."""

    env: Tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    entrypoint: Tuple[str, ...] = ()
    cmd: Tuple[str, ...] = ()
    labels: Mapping[str, str] = {}


class Image(NamedTuple):
    """An image in the store; size is that of the squashfs in bytes, pulled an epoch in s."""

    digest: str
    squashfs: str
    reference: str
    config: ImageConfig
    size: int
    pulled: float


class Link(NamedTuple):
    """A reference and the digest that it was resolved to, `resolved` (an epoch in s)."""

    reference: str
    digest: str
    resolved: float


class DamagedError(ValueError):
    """A document of the store that cannot be read; the message is path and reason."""


class Store:
    """A store of images below one directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.images_directory = os.path.join(root, "images")
        self.refs_directory = os.path.join(root, "refs")
        self.locks_directory = os.path.join(root, "locks")
        self.tmp_directory = os.path.join(root, "tmp")

    def squashfs_path(self, digest: str) -> str:
        """Where the squashfs of an image is, or will be."""
        return os.path.join(self.images_directory, hex_digits(digest) + ".sqsh")

    def document_path(self, digest: str) -> str:
        """Where the document of an image is, or will be."""
        return os.path.join(self.images_directory, hex_digits(digest) + ".json")

    def ref_path(self, reference: Reference) -> str:
        """Where the digest of a reference is, or will be."""
        return os.path.join(self.refs_directory, file_name(str(reference)))

    def find(self, reference_text: str) -> Optional[Image]:
        """The image that a reference names, as far as this store knows; None if it does not.

        Raises UserError for text that is no reference.
        """
        reference = parse_reference(reference_text)
        link = self.find_link(reference)
        digest = link.digest if link else reference.digest
        return self.find_digest(digest, str(reference)) if digest else None

    def find_link(self, reference: Reference) -> Optional[Link]:
        """What a reference was resolved to, or None when it never was."""
        try:
            return read_link(self.ref_path(reference))
        except (OSError, DamagedError):
            return None

    def find_digest(self, digest: str, reference: str = "") -> Optional[Image]:
        """The image of a digest, or None when it is not there whole."""
        try:
            return self.read_image(digest, reference)
        except (OSError, DamagedError):
            return None

    def read_image(self, digest: str, reference: str = "") -> Image:
        """Read an image's document.

        Raises OSError when a file is missing, DamagedError when the document makes no sense.
        """
        squashfs = self.squashfs_path(digest)
        size = os.stat(squashfs).st_size
        path = self.document_path(digest)
        document = read_document(path)
        try:
            return Image(
                digest=digest,
                squashfs=squashfs,
                reference=reference or str(document["reference"]),
                config=parse_config(document["config"]),
                size=size,
                pulled=float(document["pulled"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path}: {error!r}") from None

    def images(self) -> Tuple[List[Image], List[str]]:
        """All images, newest first, and a sentence for each that cannot be read."""
        images, problems = [], []
        for name in _names(self.images_directory, ".sqsh"):
            digest = f"{ALGORITHM}:{name[: -len('.sqsh')]}"
            if not is_digest(digest):
                continue
            try:
                images.append(self.read_image(digest))
            except (OSError, DamagedError) as error:
                problems.append(f"cannot read the image {digest}: {error}")
        return sorted(images, key=lambda image: -image.pulled), problems

    def links(self) -> Tuple[List[Link], List[str]]:
        """All references, and a sentence for each that cannot be read."""
        links, problems = [], []
        for name in _names(self.refs_directory, ""):
            try:
                links.append(read_link(os.path.join(self.refs_directory, name)))
            except (OSError, DamagedError) as error:
                problems.append(f"cannot read the reference {name}: {error}")
        return links, problems


def file_name(reference: str) -> str:
    """A file name for a reference, the same one always; a long one is named by its digest."""
    escaped = reference.replace("%", "%25").replace("/", "%2F")
    if len(escaped) <= MAX_FILE_NAME:
        return escaped
    from hpcwrap.image.digest import digest_of

    return digest_of(reference.encode()).replace(":", "%3A%2F")


def read_link(path: str) -> Link:
    """Read a file of refs/.

    Raises OSError or DamagedError.
    """
    document = read_document(path)
    try:
        link = Link(
            str(document["reference"]), str(document["digest"]), float(document["resolved"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: {error!r}") from None
    if not is_digest(link.digest):
        raise DamagedError(f"{path}: {link.digest!r} is no digest")
    return link


def read_document(path: str) -> Document:
    """Read one of the store's JSON documents.

    Raises OSError or DamagedError.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_DOCUMENT)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise DamagedError(f"{path}: no document of version {VERSION}")
    return document


def parse_config(config: Any) -> ImageConfig:
    """The process part of an OCI image configuration, ``{"Env": […], …}``; null is nothing.

    Raises ValueError when a field has a wrong type.
    """
    config = config or {}
    return ImageConfig(
        env=_strings(config, "Env"),
        workdir=_text(config, "WorkingDir"),
        user=_text(config, "User"),
        entrypoint=_strings(config, "Entrypoint"),
        cmd=_strings(config, "Cmd"),
        labels=_labels(config),
    )


def _names(directory: str, suffix: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    # A name that begins with a dot is a document that its writer has not renamed yet.
    yield from (name for name in names if name.endswith(suffix) and not name.startswith("."))


def _text(config: Document, key: str) -> str:
    value = config.get(key) or ""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{key} is no text")
    return value


def _strings(config: Document, key: str) -> Tuple[str, ...]:
    value = config.get(key) or ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{key} is no list")
    if not all(isinstance(text, str) and "\0" not in text for text in value):
        raise ValueError(f"{key} holds something that is no text")
    return tuple(value)


def _labels(config: Document) -> Dict[str, str]:
    value = config.get("Labels") or {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("Labels is no table of texts")
    return dict(value)
