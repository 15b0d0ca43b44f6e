"""What `setup --check` and `doctor` looked at, as data: one line of their tables each."""

from __future__ import annotations

from typing import NamedTuple, Sequence

WELL, MISSING, WRONG, NOTE = "ok", "missing", "wrong", "note"


class Finding(NamedTuple):
    """One thing that was looked at; `state` is ok, missing, wrong or note (nothing to do).

    `file` is where: a file, or what else an administrator would look at.
    """

    file: str
    what: str
    state: str
    detail: str


def is_well(findings: Sequence[Finding]) -> bool:
    """True when nothing is missing or wrong."""
    return all(finding.state in (WELL, NOTE) for finding in findings)
