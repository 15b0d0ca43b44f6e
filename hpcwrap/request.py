"""What the user asked for, as data: NAME, NAME@DIGEST, an image of the user's own, or none."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Tuple

from hpcwrap.environment import NAME_PATTERN

NONE = "none"
"""`--container=none`: the job opts out of its partition's or account's default."""

MAX_TEXT = 512
"""Characters of what may be asked for."""

TEXT = re.compile(r"[A-Za-z0-9._/-][A-Za-z0-9._/:@+=,~-]*")
"""What a name, a reference or a path may consist of: all that is the same text in a shell, a
comment of Slurm's, a log and a message."""

_PINNED = re.compile(rf"({NAME_PATTERN})@(sha256:[0-9a-f]{{64}})")


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
    found = _PINNED.fullmatch(text)
    return (found.group(1), found.group(2)) if found else (text, "")


def is_image(container: str) -> bool:
    """True for what cannot be the name of an environment: a path, or a reference with a colon."""
    return "/" in container or ":" in container


def is_plain(text: str) -> bool:
    """True for a text that may be carried as it is."""
    return len(text) <= MAX_TEXT and TEXT.fullmatch(text) is not None
