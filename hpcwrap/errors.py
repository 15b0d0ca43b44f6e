"""Errors, sorted by who can fix them.

    HpcwrapError
    ├── UserError   the user's: wrong name, no permission, broken image, no such command
    │   └── DeniedError   a registry wants other credentials than it was given, or any
    ├── SiteError   the site's: registry down, store full, settings wrong
    └── NodeError   the node's: no loop device, kernel too old; the only one that drains a node

Every message is one sentence without a final full stop: verb, object, reason.  The hint says
what to do about it.
"""

from __future__ import annotations

EXIT_USER = 2
EXIT_SITE = 3
EXIT_NODE = 4


class HpcwrapError(Exception):
    """An expected failure: told in one sentence, never with a traceback."""

    who = "site"
    exit_code = EXIT_SITE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def sentence(self) -> str:
        """Message and hint as one line, fit for a job's stderr."""
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Make a text fit for a terminal: registries and images have a say in our errors.

    >>> printable("a\x1b[2Jb")
    'a?[2Jb'
    """
    return text if text.isprintable() else "".join(x if x.isprintable() else "?" for x in text)


class UserError(HpcwrapError):
    """The user asked for something that does not exist, is not allowed or does not work."""

    who = "user"
    exit_code = EXIT_USER


class DeniedError(UserError):
    """A registry does not give an image without credentials, or not for these."""


class SiteError(HpcwrapError):
    """The site's settings or services are at fault; the job fails, the node stays in service."""


class NodeError(HpcwrapError):
    """This node cannot run containers at all: the scheduler should drain it."""

    who = "node"
    exit_code = EXIT_NODE
