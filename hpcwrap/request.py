"""What the user asked for, as data."""

from __future__ import annotations

from typing import NamedTuple, Optional

NONE = "none"
"""`--container=none`: the job opts out of its partition's or account's default."""


class Request(NamedTuple):
    """The container that a job asked for.

    `container` is an environment's name, `none`, or None when the job said nothing.  `origin` is
    the option or default that said it, as the user would recognise it: ``--container``,
    ``the default of partition gpu``.
    """

    container: Optional[str]
    origin: str
