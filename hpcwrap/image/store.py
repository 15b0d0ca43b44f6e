"""The store: which image is where.  Reading only, and cheap: the warm prolog looks here.

    STORE/images/<hex>.sqsh     the squashfs of an image, named by the digest of its manifest
    STORE/images/<hex>.json     its configuration, where it came from, its sizes, whose it is;
                                the file's mtime is the image's last use
    STORE/refs/<reference>      reference → digest, when that was resolved, earlier digests;
                                <reference>%40<uid> is what a user named, for that user alone
    STORE/leases/<hex>/         which job of which node uses the image (lease.py)
    STORE/locks/                one puller per reference and image (pull.py)
    STORE/tmp/                  work of pulls under way (workspace.py)
    STORE/blobs/                downloaded layers (speed of later pulls)
    STORE/aside/                what was damaged, or replaced while a job used it (verify.py)

Everything appears by rename; an image exists when both of its files do.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from hpcwrap.image.digest import ALGORITHM, hex_digits, is_digest
from hpcwrap.image.source import parse_source

VERSION = 1
"""Of the documents in the store; one of another version counts as broken."""

MAX_DOCUMENT = 16 << 20
MAX_FILE_NAME = 200
CONFIG_KEYS = ("Env", "WorkingDir", "User", "Entrypoint", "Cmd", "Labels")
TOUCH_EVERY = 3600.0
"""Seconds between two notes of an image's use: one write an hour, not one for each job."""

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
    """An image in the store; size is that of the squashfs in bytes, pulled and used epochs in s.

    uids are those who may use it, none: everyone; checksum is that of the squashfs file
    (checksum.py), or empty where it was made by an hpcwrap that did not keep one.
    """

    digest: str
    squashfs: str
    reference: str
    config: ImageConfig
    size: int
    pulled: float
    uids: Tuple[int, ...] = ()
    checksum: str = ""
    used: float = 0.0


class Link(NamedTuple):
    """A reference and the digest that it was resolved to, `resolved` (an epoch in s).

    history: the digests that it has had, newest (`digest`) first.  failed: the sentence of the
    last refresh, at `failed_at`, if that failed.  stamp: what a file looked like from which the
    image was made.  owner: the uid of who named it, None for the site and its environments: one
    path, or one localhost, is not the same for all users and nodes.
    """

    reference: str
    digest: str
    resolved: float
    history: Tuple[str, ...] = ()
    failed: str = ""
    failed_at: float = 0.0
    stamp: str = ""
    owner: Optional[int] = None


class DamagedError(ValueError):
    """A document of the store that cannot be read; the message is path and reason."""


class Store:
    """A store of images below one directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.images_directory = os.path.join(root, "images")
        self.refs_directory = os.path.join(root, "refs")
        self.leases_directory = os.path.join(root, "leases")
        self.locks_directory = os.path.join(root, "locks")
        self.tmp_directory = os.path.join(root, "tmp")
        self.aside_directory = os.path.join(root, "aside")
        self.blobs_directory = os.path.join(root, "blobs")

    def squashfs_path(self, digest: str) -> str:
        """Where the squashfs of an image is, or will be."""
        return os.path.join(self.images_directory, hex_digits(digest) + ".sqsh")

    def document_path(self, digest: str) -> str:
        """Where the document of an image is, or will be."""
        return os.path.join(self.images_directory, hex_digits(digest) + ".json")

    def ref_path(self, name: object, owner: Optional[int] = None) -> str:
        """Where the digest of a reference is, or will be; `name` is a Reference or its text."""
        return os.path.join(self.refs_directory, file_name(str(name), owner))

    def find(self, text: str, owner: Optional[int] = None) -> Optional[Image]:
        """The image that a reference names, as far as this store knows; None if it does not.

        A digest in the text says which image, and not that it may be had under this name.  Raises
        UserError for text that is no reference.
        """
        key = parse_key(text)[0]
        link = self.find_link(key, owner)
        return self.find_digest(link.digest, key) if link else None

    def find_pinned(self, text: str, digest: str) -> Optional[Image]:
        """The image of a digest, if the reference has that digest or had it; None otherwise.

        Who names a digest that the reference never had asks for another image than the one whose
        name was checked.  Raises UserError for text that is no reference.
        """
        key, own = parse_key(text)
        link = self.find_link(key)
        if digest != own and (link is None or digest not in link.history):
            return None
        return self.find_digest(digest, key)

    def find_link(self, name: object, owner: Optional[int] = None) -> Optional[Link]:
        """What a reference was resolved to, or None when it never was."""
        try:
            return read_link(self.ref_path(name, owner))
        except (OSError, DamagedError):
            return None

    def look_anew(self) -> None:
        """Make the next look at names here a fresh one, also where the store is on NFS.

        An NFS client believes for up to a minute that a name is there, or is not.  Opening a
        directory makes it ask the server for the directory's time of change, and so for the names
        in it if that differs (nfs(5), "Close-to-open cache consistency").
        """
        for directory in (self.images_directory, self.refs_directory, self.leases_directory):
            with suppress(OSError):
                os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

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
        path = self.document_path(digest)
        document = read_document(path)
        try:
            return Image(
                digest=digest,
                squashfs=squashfs,
                reference=reference or str(document["reference"]),
                config=parse_config(document["config"]),
                size=os.stat(squashfs).st_size,
                pulled=float(document["pulled"]),
                uids=tuple(int(uid) for uid in document.get("uids", ())),
                checksum=str(document.get("checksum", "")),
                used=os.stat(path).st_mtime,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path}: {error!r}") from None

    def images(self) -> Tuple[List[Image], List[str]]:
        """All images that we may read, newest first, and a sentence for each that is damaged."""
        images, problems = [], []
        for digest in self.digests():
            try:
                images.append(self.read_image(digest))
            except PermissionError:
                continue  # a private image, and we are not root
            except (OSError, DamagedError) as error:
                if os.path.exists(self.document_path(digest)):
                    problems.append(f"cannot read the image {digest}: {error}")
        return sorted(images, key=lambda image: -image.pulled), problems

    def digests(self) -> List[str]:
        """The digests of all images, as the names of their documents say."""
        names = _names(self.images_directory, ".json")
        found = [f"{ALGORITHM}:{name[: -len('.json')]}" for name in names]
        return [digest for digest in found if is_digest(digest)]

    def links(self) -> Tuple[List[Link], List[str]]:
        """All references, and a sentence for each that cannot be read."""
        links, problems = [], []
        for name in _names(self.refs_directory, ""):
            try:
                links.append(read_link(os.path.join(self.refs_directory, name)))
            except (FileNotFoundError, PermissionError):
                continue  # removed since the listing, or a private image's
            except (OSError, DamagedError) as error:
                problems.append(f"cannot read the reference {name}: {error}")
        return links, problems


def allowed(image: Image, uid: int) -> bool:
    """Whether a user may use an image: it is everyone's, or that user's too; root may always."""
    return not image.uids or uid == 0 or uid in image.uids


def touch_used(image: Image) -> None:
    """Note that an image is used now: its document's mtime, at most once in TOUCH_EVERY.

    A store that this node may only read keeps no such notes.
    """
    if time.time() - image.used < TOUCH_EVERY:
        return
    with suppress(OSError):
        os.utime(f"{image.squashfs[: -len('.sqsh')]}.json")


def parse_key(text: str) -> Tuple[str, Optional[str]]:
    """The canonical text of a source, by which refs/ has it, and the digest in it if any.

    Raises UserError for text that names no image.
    """
    source = parse_source(text)
    # The digest in an engine's reference is not that of the image that we make of it.
    reference = None if source.local else source.reference
    return str(source), reference.digest if reference else None


def file_name(reference: str, owner: Optional[int] = None) -> str:
    """A file name for a reference, the same one always; a long one is named by its digest."""
    whose = "" if owner is None else f"%40{owner}"
    escaped = reference.replace("%", "%25").replace("/", "%2F")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(os.fsencode(escaped)) <= MAX_FILE_NAME:
        return escaped + whose
    from hpcwrap.image.digest import digest_of

    return digest_of(os.fsencode(reference)).replace(":", "%3A%2F") + whose


def read_link(path: str) -> Link:
    """Read a file of refs/.

    Raises OSError or DamagedError.
    """
    document = read_document(path)
    try:
        digest = str(document["digest"])
        link = Link(
            reference=str(document["reference"]),
            digest=digest,
            resolved=float(document["resolved"]),
            history=tuple(str(one) for one in document.get("history", (digest,))),
            failed=str(document.get("failed", "")),
            failed_at=float(document.get("failed_at", 0.0)),
            stamp=str(document.get("stamp", "")),
            owner=_owner(document.get("owner")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: {error!r}") from None
    if not all(is_digest(one) for one in (digest, *link.history)):
        raise DamagedError(f"{path}: a digest in it is none")
    return link


def _owner(value: Any) -> Optional[int]:
    return None if value is None else int(value)


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
    if not isinstance(config, dict):
        raise ValueError("it is no table")
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


def _is_text(value: Any) -> bool:
    """Whether a value can be in an environment: JSON has halves of surrogate pairs, too."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.encode(errors="replace").decode() == value


def _text(config: Document, key: str) -> str:
    value = config.get(key) or ""
    if not _is_text(value):
        raise ValueError(f"{key} is no text")
    return str(value)


def _strings(config: Document, key: str) -> Tuple[str, ...]:
    value = config.get(key) or ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{key} is no list")
    if not all(map(_is_text, value)):
        raise ValueError(f"{key} holds something that is no text")
    return tuple(value)


def _labels(config: Document) -> Dict[str, str]:
    value = config.get("Labels") or {}
    if not isinstance(value, dict) or not all(map(_is_text, (*value, *value.values()))):
        raise ValueError("Labels is no table of texts")
    return dict(value)
