"""Which images a site allows, or shares: patterns on an image's full name.

In a pattern `*` stands for any characters but a slash, `**` for any at all, and every other
character for itself.  A pattern without a tag means every tag and every digest of what it names.
"""

from __future__ import annotations

import re
from typing import Sequence

from hpcwrap.errors import UserError
from hpcwrap.image.source import FILE, PATHS, Source

MAX_SHOWN = 5
"""Patterns that an error lists: a user needs an idea of what there is, not a screen of it."""


def check_allowed(text: str, patterns: Sequence[str]) -> None:
    """Refuse an image that no pattern of the setting allow_images matches; no patterns: all match.

    `text` is a reference in full (``docker.io/library/debian:12``) or ``transport:path``.  Raises
    UserError.
    """
    if patterns and not matches(text, patterns):
        shown = ", ".join(patterns[:MAX_SHOWN])
        more = ", …" if len(patterns) > MAX_SHOWN else ""
        raise UserError(
            f"cannot use the image {text}: this site does not allow it",
            f"its setting allow_images has {shown}{more}",
        )


def check_source(source: Source, patterns: Sequence[str]) -> None:
    """Refuse a source that no pattern matches, as `check_allowed` does.

    A path whose kind is not known yet may be of any kind that is allowed there: what it turns out
    to be changes how it is read, and not what is in it.
    """
    if source.transport == FILE:
        kinds = [f"{kind}:{source.path}" for kind in PATHS]
        if any(matches(text, patterns) for text in kinds):
            return
    check_allowed(source.full, patterns)


def matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches an image's full name."""
    if ".." in text.partition(":")[2].split("/"):
        return False  # it would leave the directory that the pattern seems to name
    name = _without_tag(text)
    return any(
        expression.fullmatch(text) or expression.fullmatch(name)
        for expression in map(_expression, patterns)
    )


def _expression(pattern: str) -> re.Pattern[str]:
    wild = {"*": "[^/]*", "**": ".*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _without_tag(text: str) -> str:
    # A colon after the last slash begins a tag; before it, a port or a transport's path.
    name = text.partition("@")[0]
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail and "/" in head else name
