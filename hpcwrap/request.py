"""What the user asked for, as data: NAME, NAME@DIGEST, an image of the user's own, or none."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

from hpcwrap.environment import is_name

NONE = "none"
"""`--container=none`: the job opts out of the default of its partition, queue or account."""

MAX_TEXT = 512
"""Characters of what may be asked for."""

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/:@+=,~-")
"""What a name, a reference or a path may consist of: all that is the same text in a shell, a
comment of Slurm's, a log and a message."""

NOT_FIRST = frozenset(":@+=,~")
HEX = frozenset("0123456789abcdef")
DIGEST = "@sha256:"


class Request(NamedTuple):
    """The container that a job asked for.

    `container` is an environment's name, an image (`is_image`), `none`, or None when the job said
    nothing.  `origin` is the option or default that said it, as the user would recognise it:
    ``--container``, ``the default of partition gpu``.  `pin` is the digest that the environment's
    image had at submission, or that the user wants again; empty for the one it has now.
    """

    container: Optional[str]
    origin: str
    pin: str = ""


def make_request(text: str, origin: str) -> Request:
    """Read what was asked for.

    >>> make_request("debian-12@sha256:" + 64 * "0", "--container").container
    'debian-12'
    """
    name, pin = split_pin(text)
    return Request(name, origin, pin)


def split_pin(text: str) -> Tuple[str, str]:
    """NAME and DIGEST of ``NAME@sha256:…``; the text and nothing where it is anything else."""
    name, at, digits = text.partition(DIGEST)
    if at and is_name(name) and len(digits) == 64 and HEX.issuperset(digits):
        return name, DIGEST[1:] + digits
    return text, ""


def is_image(container: str) -> bool:
    """True for what cannot be the name of an environment: a path, or a reference with a colon."""
    return "/" in container or ":" in container


def is_plain(text: str) -> bool:
    """True for a text that may be carried as it is."""
    if not 0 < len(text) <= MAX_TEXT or text[0] in NOT_FIRST:
        return False
    return LETTERS.issuperset(text)


def harmless(text: str) -> str:
    """Make a user's text fit for messages; what can be meant stays as it is.

    No error yet: nobody would see it before the job's directory is there to hold it.
    """
    import re

    return text if is_plain(text) else re.sub(r"[^A-Za-z0-9._-]", "?", text[:64]) or "?"
