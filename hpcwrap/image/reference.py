"""References: the text that names an image, ``[registry[:port]/]repository[:tag][@digest]``.

Grammar and defaults are those of Docker's distribution project (``reference/reference.go`` and
``normalize.go``), which every registry client follows: no registry means docker.io, a repository
of one part there is in ``library/``, and no tag and no digest mean the tag latest.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, Optional, Tuple

from hpcwrap.errors import UserError
from hpcwrap.image.digest import is_digest

DOCKER = "docker://"
DEFAULT_REGISTRY = "docker.io"
OLD_DEFAULT_REGISTRY = "index.docker.io"
OFFICIAL = "library/"
LATEST = "latest"
MAX_REPOSITORY = 255
MAX_PORT = 65535

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\])(?::([0-9]{{1,5}}))?\Z"
)
_LOOPBACK = re.compile(r"127(?:\.[0-9]{1,3}){3}\Z")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}\Z")


class Reference(NamedTuple):
    """A parsed reference; ``str()`` of it is its one canonical text, as short as Docker's.

    registry and repository are whole: docker.io and library/ stand where they were left out.
    """

    registry: str
    repository: str
    tag: Optional[str]
    digest: Optional[str]

    def __str__(self) -> str:
        return f"{self._short_name()}{self._suffix()}"

    @property
    def full(self) -> str:
        """The canonical text with nothing left out, for allow-lists: docker.io/library/x:tag."""
        return f"{self.name}{self._suffix()}"

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def loopback(self) -> bool:
        """Whether the registry is this machine's own: reached without TLS, as Docker does."""
        host = self.registry if self.registry.endswith("]") else self.registry.rpartition(":")[0]
        host = host or self.registry
        return host in ("localhost", "[::1]") or _LOOPBACK.match(host) is not None

    def _short_name(self) -> str:
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        short = _without_library(self.repository)
        # docker.io/a.b/c stays as it is: a.b/c would be a repository of the registry a.b.
        return self.name if _split_registry(short)[0] else short

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


def parse_reference(text: str) -> Reference:
    """Parse ``[docker://][registry[:port]/]repository[:tag][@digest]``.

    Raises UserError with the part that is wrong.
    """
    rest, at, digest = text[len(DOCKER) if text.startswith(DOCKER) else 0 :].partition("@")
    if at and not is_digest(digest):
        _refuse(text, f"{digest[:80]!r} is no sha256 digest")
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.match(tag):
        _refuse(text, f"{tag[:80]!r} is no tag")
    registry, repository = _split_registry(rest)
    _check_registry(text, registry)
    _check_repository(text, repository)
    registry, repository = _normalized(registry, repository)
    if len(repository) > MAX_REPOSITORY:
        _refuse(text, f"the repository is longer than {MAX_REPOSITORY} characters")
    return Reference(registry, repository, tag or (None if digest else LATEST), digest or None)


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


def _normalized(registry: str, repository: str) -> Tuple[str, str]:
    if registry in ("", OLD_DEFAULT_REGISTRY):
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = OFFICIAL + repository
    return registry, repository


def _without_library(repository: str) -> str:
    name = repository[len(OFFICIAL) :] if repository.startswith(OFFICIAL) else repository
    return repository if "/" in name else name


def _check_registry(text: str, registry: str) -> None:
    if not registry:
        return
    host = _HOST.match(registry)
    if not host:
        _refuse(text, f"{registry[:80]!r} is no registry")
    if host[1] and not 0 < int(host[1]) <= MAX_PORT:
        _refuse(text, f"{host[1]} is no port")


def _check_repository(text: str, repository: str) -> None:
    if not repository:
        _refuse(text, "it names no repository")
    if _IMAGE_ID.match(repository):
        # Docker refuses it, too: it cannot be told from the id of an image.
        _refuse(text, "it is a digest without a repository")
    for part in repository.split("/"):
        if not _NAME.match(part):
            why = "; repositories are lower-case" if _NAME.match(part.lower()) else ""
            _refuse(text, f"{part[:80]!r} cannot be part of a repository{why}")


def _refuse(text: str, reason: str) -> NoReturn:
    raise UserError(
        f"cannot read the image reference {text[:300]!r}: {reason}",
        "write [registry[:port]/]repository[:tag][@sha256:digest]",
    )
