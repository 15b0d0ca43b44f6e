"""Digests: ``sha256:<64 hex digits>``, the name of a blob, of a manifest and so of an image."""

from __future__ import annotations

import re

from hpcwrap.errors import UserError

ALGORITHM = "sha256"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def is_digest(text: str) -> bool:
    """Whether the text is a complete digest of the one algorithm that registries serve."""
    return _DIGEST.match(text) is not None


def check_digest(text: str, what: str) -> str:
    """Return the digest as it is.

    Raises UserError naming `what` (an image, a layer) when it is no digest: a digest becomes part
    of file names, so nothing else may pass.
    """
    if not is_digest(text):
        raise UserError(f"{what} has no sha256 digest but {text[:80]!r}")
    return text


def hex_digits(digest: str) -> str:
    """The digest without its algorithm: the stem of an image's files in the store."""
    return digest.partition(":")[2]


def digest_of(content: bytes) -> str:
    """The digest that names this content."""
    # Imported here: OpenSSL's start-up costs the warm prolog 3 ms, and it hashes nothing.
    import hashlib

    return f"{ALGORITHM}:{hashlib.sha256(content).hexdigest()}"
