"""References: the text that names an image, ``[registry[:port]/]repository[:tag][@digest]``.

The grammar is the one of Docker's distribution project (``reference/reference.go``), which every
registry client follows.  A reference without a registry stays without one: which registry it
means is settled in the site's registries.conf, by skopeo.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, Optional, Tuple

from hpcwrap.errors import UserError
from hpcwrap.image.digest import is_digest

DOCKER = "docker://"
OTHER_TRANSPORTS = (
    "containers-storage:",
    "dir:",
    "docker-archive:",
    "docker-daemon:",
    "file:",
    "http://",
    "https://",
    "library://",
    "oci-archive:",
    "oci:",
    "oras://",
    "ostree:",
    "shub://",
    "sif:",
    "squashfs:",
    "tarball:",
)
MAX_REPOSITORY = 255
LATEST = "latest"

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z"
)


class Reference(NamedTuple):
    """A parsed reference; ``str()`` of it is its one canonical text."""

    registry: str
    repository: str
    tag: Optional[str]
    digest: Optional[str]

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def loopback(self) -> bool:
        """Whether the registry is this machine's own: reached without TLS, as Docker does."""
        host = self.registry if self.registry.endswith("]") else self.registry.rpartition(":")[0]
        host = host or self.registry
        return host in ("localhost", "[::1]") or host.startswith("127.")


def parse_reference(text: str) -> Reference:
    """Parse ``[docker://][registry[:port]/]repository[:tag][@digest]``.

    The tag is ``latest`` where neither tag nor digest is given.  Raises UserError with the part
    that is wrong.
    """
    rest = _strip_transport(text)
    rest, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        _refuse(text, f"{digest!r} is no sha256 digest")
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.match(tag):
        _refuse(text, f"{tag!r} is no tag")
    registry, repository = _split_registry(rest)
    _check_registry(text, registry)
    _check_repository(text, repository)
    return Reference(registry, repository, tag or (None if digest else LATEST), digest or None)


def _strip_transport(text: str) -> str:
    if text.startswith(DOCKER):
        return text[len(DOCKER) :]
    for transport in OTHER_TRANSPORTS:
        # "oci:1.0" is a fine reference (repository oci), "oci:/a/layout" is another transport.
        if text.startswith(transport) and (transport.endswith("//") or "/" in text):
            _refuse(text, f"images come from registries only, {transport} is not supported")
    return text


def _split_tag(text: str) -> Tuple[str, Optional[str]]:
    head, colon, tail = text.rpartition(":")
    if colon and "/" not in tail:
        return head, tail
    return text, None


def _split_registry(text: str) -> Tuple[str, str]:
    # Docker's rule: the first part is a host only if it could not be a repository's first part.
    first, slash, rest = text.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    return (first, rest) if slash and is_host else ("", text)


def _check_registry(text: str, registry: str) -> None:
    if registry and not _HOST.match(registry):
        _refuse(text, f"{registry!r} is no registry")


def _check_repository(text: str, repository: str) -> None:
    if not repository:
        _refuse(text, "it names no repository")
    if len(repository) > MAX_REPOSITORY:
        _refuse(text, f"the repository is longer than {MAX_REPOSITORY} characters")
    for part in repository.split("/"):
        if not _NAME.match(part):
            hint = "; repositories are lower-case" if _NAME.match(part.lower()) else ""
            _refuse(text, f"{part!r} cannot be part of a repository{hint}")


def _refuse(text: str, reason: str) -> NoReturn:
    raise UserError(
        f"cannot read the image reference {text[:300]!r}: {reason}",
        "write [registry[:port]/]repository[:tag][@sha256:digest]",
    )
