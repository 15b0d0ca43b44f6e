"""What `setup --check` and `doctor` looked at, as data: one line of their tables each."""

from __future__ import annotations

from typing import NamedTuple, Sequence

WELL, MISSING, WRONG, NOTE = "ok", "missing", "wrong", "note"
REPAIRED = "repaired"


class Finding(NamedTuple):
    """One thing that was looked at; `file` is where, or what else an administrator would look at.

    `state` is ok, missing, wrong, note (nothing to do) or repaired.
    """

    file: str
    what: str
    state: str
    detail: str


def is_well(findings: Sequence[Finding]) -> bool:
    """True when nothing is missing or wrong."""
    return all(finding.state in (WELL, NOTE, REPAIRED) for finding in findings)
