"""Sources: where an image comes from, a registry or something that lies on this machine.

    debian:12, docker://debian:12     a registry (reference.py)
    oci:/DIR[:NAME]                   an OCI image layout; dir:/DIR skopeo's own layout
    oci-archive:/FILE[:NAME]          the same as a tar file; docker-archive:/FILE[:NAME] Docker's
    tar:/FILE, rootfs:/DIR            a root file system, packed in any way or not at all
    squashfs:/FILE, sif:/FILE         a file of mksquashfs, of Apptainer or Singularity
    docker-daemon:NAME                an image in Docker; containers-storage:NAME in Podman
    /PATH                             a file or directory: what it is shows when it is pulled

The words and the splitting of path and name are skopeo's (containers-transports(5)).  The warm
prolog imports this module.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, Optional, Tuple

from hpcwrap.errors import UserError
from hpcwrap.image.reference import DOCKER, Reference, parse_reference

REGISTRY = "docker"
FILE = "file"
NAMED = ("oci", "dir", "oci-archive", "docker-archive")
"""Paths in which several images can lie, each with a name after a colon."""
PATHS = (*NAMED, "tar", "rootfs", "squashfs", "sif")
ENGINES = ("docker-daemon", "containers-storage")
"""Stores of the user's own container engine; the name in them is a reference."""

MAX_PATH = 4095
"""Bytes of a path (limits.h, PATH_MAX without the zero byte)."""

SIF_HINT = "pull it with apptainer, then name the file it makes: sif:/PATH"
OTHERS = {
    "library://": SIF_HINT,
    "shub://": SIF_HINT,
    "oras://": SIF_HINT,
    "http://": "name a registry's image without http://, or download the file first",
    "https://": "name a registry's image without https://, or download the file first",
    "dockerd://": "write docker-daemon:NAME",
    "podman://": "write containers-storage:NAME",
    "instance://": "",
    "file:": "write the path alone, from / on",
    "docker:": "write docker://NAME, or NAME alone",
    "ostree:": "",
    "tarball:": "write tar:/PATH",
    "sandbox:": "write rootfs:/PATH",
}
"""What other programs take and we do not, and what to write instead."""

# "docker:27" is a fine reference; "docker:debian:12" and "docker:a/b" are another program's.
_REPOSITORY_TAG = re.compile(r"[^:/]+:[^:/]+\Z")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9@._+:/-]{1,300}\Z")


class Source(NamedTuple):
    """Where an image comes from; ``str()`` of it is its one canonical text.

    transport: a word of the table above, or "file" for a path alone.  reference: of a registry's
    or an engine's image, else None.  path: absolute, without "." and "..".  name: which image of
    those at the path, "" for the only one.
    """

    transport: str
    reference: Optional[Reference] = None
    path: str = ""
    name: str = ""

    def __str__(self) -> str:
        if self.transport == FILE:
            return self.path
        if self.transport != REGISTRY:
            return f"{self.transport}:{self._rest(str(self.reference))}"
        text = str(self.reference)
        # A repository of this name must not be taken for the engine's store.
        return self.full if text.partition(":")[0] in ENGINES else text

    @property
    def full(self) -> str:
        """The text with nothing left out, for allow-lists: docker.io/library/x:tag, sif:/path."""
        reference = self.reference.full if self.reference else ""
        return (
            reference if self.transport == REGISTRY else f"{self.transport}:{self._rest(reference)}"
        )

    @property
    def local(self) -> bool:
        """Whether the image lies on this machine and so is read with its user's rights."""
        return self.transport != REGISTRY

    def _rest(self, reference: str) -> str:
        name = f":{self.name}" if self.name else ""
        return f"{self.path}{name}" if self.path else reference


def parse_source(text: str) -> Source:
    """Parse what names an image, in an environment's file or on a command line.

    Raises UserError with the part that is wrong.
    """
    if text.startswith("/"):
        return Source(FILE, path=_parse_path(text, text))
    transport, _, rest = text.partition(":")
    if transport in ENGINES and rest:
        return Source(transport, parse_reference(rest))
    # "oci:1.0" is a fine reference (repository oci), "oci:/a/layout" is not.
    if transport in PATHS and ("/" in rest or rest.startswith((".", "~"))):
        path, name = _split_name(text, rest) if transport in NAMED else (rest, "")
        return Source(transport, path=_parse_path(text, path), name=name)
    _refuse_others(text)
    return Source(REGISTRY, parse_reference(text))


def _split_name(text: str, rest: str) -> Tuple[str, str]:
    path, colon, name = rest.partition(":")
    if colon and not _IMAGE_NAME.match(name):
        _refuse(text, f"{name[:80]!r} is no name of an image", "leave out what follows the path")
    return path, name


def _parse_path(text: str, path: str) -> str:
    if not path.startswith("/"):
        _refuse(text, "its path does not begin with /", "name files by their full path")
    if not path.isprintable():
        _refuse(text, "its path holds characters that cannot be shown", "rename the file")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        # The site's patterns of allowed images are compared with this text.
        _refuse(text, "its path holds ..", "name files by their full path")
    if not parts:
        _refuse(text, "it is the root of the host", "name a file or directory below it")
    clean = "/" + "/".join(parts)
    if len(clean.encode()) > MAX_PATH:
        _refuse(text, f"its path is longer than {MAX_PATH} bytes", "")
    return clean


def _refuse_others(text: str) -> None:
    if "#" in text:
        _refuse(text, "# cannot be part of it", "where enroot has #, write /")
    if text.startswith(DOCKER):
        return
    for other, hint in OTHERS.items():
        if text.startswith(other) and not _REPOSITORY_TAG.match(text):
            _refuse(text, f"hpcwrap does not read images from {other}", hint)
    if text.startswith(("./", "../", "~")):
        _refuse(text, "it is a path that does not begin with /", "name files by their full path")
    if "://" in text:
        _refuse(text, f"hpcwrap knows no {text.partition('://')[0][:80]}://", "")


def _refuse(text: str, reason: str, hint: str) -> NoReturn:
    raise UserError(f"cannot read the image source {text[:300]!r}: {reason}", hint)
