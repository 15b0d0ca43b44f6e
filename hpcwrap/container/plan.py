"""The plan of a container: pure data, made without touching the machine.

`make_plan` is the documentation of what a container consists of, in the order in which it is
built.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap.config import Settings
from hpcwrap.container import mounts
from hpcwrap.container.addition import Addition
from hpcwrap.container.direct import Direct
from hpcwrap.container.operations import (
    Accounts,
    Commands,
    HostFile,
    Image,
    KeepHostRoot,
    Note,
    Operation,
    ReadOnlyRoot,
    Root,
    Stage,
    SwitchRoot,
)
from hpcwrap.environment import Environment, Mount, Rlimit, Variable, format_rlimit
from hpcwrap.job import Job, User

HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/localtime")


class Plan(NamedTuple):
    """All that is needed to build a container: whose it is, how it is joined, what it is made of.

    With `user_namespace` the user joins without privilege; without, root joins and then becomes
    the user (design decision 3).
    """

    user: User
    user_namespace: bool
    image: Image
    operations: Tuple[Operation, ...]
    variables: Tuple[Variable, ...] = ()
    rlimits: Tuple[Rlimit, ...] = ()
    warnings: Tuple[str, ...] = ()
    notes: Tuple[Note, ...] = ()

    def describe(self) -> List[str]:
        """One line for each step, as `hpcwrap plan` prints them."""
        joining = "user namespace" if self.user_namespace else "host identity"
        lines = [f"for {self.user.name} (uid {self.user.uid}), joined by {joining}"]
        lines += [operation.describe() for operation in self.operations]
        return lines + [f"limit {format_rlimit(limit)} of each process" for limit in self.rlimits]


def make_plan(
    squashfs: str,
    environment: Environment,
    settings: Settings,
    job: Job,
    *,
    scheduler_mounts: Sequence[Mount] = (),
    commands: Optional[Commands] = None,
    additions: Sequence[Addition] = (),
    user_namespace: bool = False,
) -> Plan:
    """Plan the container of a job: `squashfs` is the image's file in the store.

    `commands` are those of the host that are to work inside, `additions` what the machine adds.

    Raises SiteError for a mount that cannot be meant.
    """
    wanted = [
        *mounts.SYSTEM,
        *mounts.make(scheduler_mounts, variables={}),
        *(mount for addition in additions for mount in addition.mounts),
        *mounts.user_mounts(settings, job),
        *mounts.make((*settings.mounts, *environment.mounts), variables=_variables(job)),
    ]
    image = Image(squashfs)
    operations: List[Operation] = [
        Stage(settings.root_size),
        image,
        Root(),
        # Written before anything of the host is mounted inside (rootfs.open_own).
        *(HostFile(path) for path in HOST_FILES),
        Accounts(job.user.name),
        *mounts.arrange(wanted),
        *(operation for addition in additions for operation in addition.operations),
        *([commands] if commands else []),
        Direct(),
        ReadOnlyRoot(),
        KeepHostRoot() if commands else SwitchRoot(),
    ]
    variables = tuple(variable for addition in additions for variable in addition.variables)
    rlimits = tuple(limit for addition in additions for limit in addition.rlimits)
    warnings = tuple(text for addition in additions for text in addition.warnings)
    return Plan(job.user, user_namespace, image, tuple(operations), variables, rlimits, warnings)


def _variables(job: Job) -> Dict[str, str]:
    """What a site may write into the source of a mount."""
    return {
        "USER": job.user.name,
        "UID": str(job.user.uid),
        "HOME": job.user.home,
        "JOB": job.id,
    }
