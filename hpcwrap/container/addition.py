"""What one part of the machine adds to a container: pure data, made before anything is built."""

from __future__ import annotations

from typing import NamedTuple, Tuple

from hpcwrap.container.mounts import MountOperation
from hpcwrap.container.operations import Operation
from hpcwrap.environment import Rlimit, Variable


class Addition(NamedTuple):
    """Mounts, operations that follow all mounts, changes of the job's variables, and its rlimits.

    The changes come after the image's own and before the environment's.  `warnings` are for the
    job's record.
    """

    mounts: Tuple[MountOperation, ...] = ()
    operations: Tuple[Operation, ...] = ()
    variables: Tuple[Variable, ...] = ()
    rlimits: Tuple[Rlimit, ...] = ()
    warnings: Tuple[str, ...] = ()
