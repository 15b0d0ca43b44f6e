"""Messages of hpcwrap: to a person's stderr, or one line a stage to syslog."""

from __future__ import annotations

import json
import sys
from typing import Dict, Union

from hpcwrap.errors import printable

Field = Union[str, int, float]

PLAIN = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('"=\\')
"""What a value in syslog may consist of without quotes."""

LONGEST = 1024
"""Characters of one value: syslog daemons cut lines, the longest where it suits them."""


def say(text: str) -> None:
    """Print a line for a person to stderr, flushed so that it interleaves with children."""
    lines = map(printable, text.split("\n"))
    print("hpcwrap: " + "\n".join(lines), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning for a person to stderr."""
    say(f"warning: {text}")


def format_fields(stage: str, fields: Dict[str, Field]) -> str:
    r"""Format the one line that a stage leaves in syslog, in logfmt: KEY=VALUE, blanks between.

    A value with anything but plain letters is in quotes, escaped as JSON's strings are: what users
    and images have a say in cannot end a value, nor the line.

    >>> format_fields("prolog", {"job": 7, "ms": 31.04, "error": 'no "x"\n'})
    'stage=prolog job=7 ms=31.04 error="no \\"x\\"\\n"'
    """
    pairs = {"stage": stage, **fields}
    return " ".join(f"{key}={_quote(value)}" for key, value in pairs.items())


def stage_line(stage: str, **fields: Field) -> None:
    """Send a stage's line to syslog (facility daemon); sites without syslog lose only the line."""
    import syslog

    syslog.openlog("hpcwrap", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_INFO, format_fields(stage, fields))


def _quote(value: Field) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    text = str(value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    return text if text and PLAIN.issuperset(text) else json.dumps(text)
