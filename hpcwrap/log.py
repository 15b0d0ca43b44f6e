"""Messages of hpcwrap: to a person's stderr, or one line a stage to syslog."""

from __future__ import annotations

import sys
from typing import Dict, Union

from hpcwrap.errors import printable

Field = Union[str, int, float]


def say(text: str) -> None:
    """Print a line for a person to stderr, flushed so that it interleaves with children."""
    lines = map(printable, text.split("\n"))
    print("hpcwrap: " + "\n".join(lines), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning for a person to stderr."""
    say(f"warning: {text}")


def format_fields(stage: str, fields: Dict[str, Field]) -> str:
    """Format the one line that a stage leaves in syslog: ``prolog job=7 user=alice ms=31``."""
    return " ".join([stage, *(f"{key}={_quote(value)}" for key, value in fields.items())])


def stage_line(stage: str, **fields: Field) -> None:
    """Send a stage's line to syslog (facility daemon); sites without syslog lose only the line."""
    import syslog

    syslog.openlog("hpcwrap", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_INFO, format_fields(stage, fields))


def _quote(value: Field) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    if not text or any(character.isspace() or character == '"' for character in text):
        return '"' + text.replace('"', "'").replace("\n", " ") + '"'
    return text
