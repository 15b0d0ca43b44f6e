"""What jobs have left on this node: `hpcwrap doctor` names it, with --repair it removes it.

Nothing of a job that runs is ever named: docs/decisions/0150 says how each kind is told apart.
"""

from __future__ import annotations

from typing import Iterator

from hpcwrap import log
from hpcwrap.errors import HpcwrapError
from hpcwrap.verbs import leftovers_files, leftovers_jobs
from hpcwrap.verbs.leftover import Leftover, Node

KINDS = (*leftovers_jobs.KINDS, *leftovers_files.KINDS)
"""In the order of repair: a job's end takes with it what the later kinds would find."""


def find(node: Node) -> Iterator[Leftover]:
    """All that was left; what cannot be looked at is told as one, too."""
    for kind in KINDS:
        try:
            yield from kind(node)
        except (HpcwrapError, OSError) as error:
            yield Leftover("leftovers", kind.__name__.replace("_", " "), str(error))


def repair(node: Node) -> Iterator[Leftover]:
    """Remove what was left, one thing after the other; those that went."""
    for leftover in find(node):
        try:
            if leftover.remove():
                yield leftover
        except (HpcwrapError, OSError) as error:
            log.warn(f"cannot remove the {leftover.kind} {leftover.where}: {error}")
