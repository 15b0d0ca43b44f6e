"""The job as every scheduler has it: whose it is, where it runs."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

from hpcwrap.environment import Machine
from hpcwrap.errors import SiteError, UserError


class User(NamedTuple):
    """An account of this node: `groups` holds all numeric groups, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: Tuple[int, ...]
    home: str
    shell: str = "/bin/sh"


class Limits(NamedTuple):
    """What a job as a whole may use of one node; None is no limit of ours.

    `memory`, `swap` (beside the memory) and `hugetlb` (of each size of huge pages) in bytes, `cpus`
    as time per time, `cpuset` as a list of CPUs, ``0-3,8``, `pids` as processes and threads.
    """

    memory: Optional[int] = None
    swap: Optional[int] = None
    cpus: Optional[float] = None
    cpuset: Optional[str] = None
    pids: Optional[int] = None
    hugetlb: Optional[int] = None


NO_LIMITS = Limits()


class Job(NamedTuple):
    """One job on one node.  `id` is unique on the node and names the job's directory.

    `places` are those where it runs that may have a default container, by kind: partition, account,
    queue … (`config.DEFAULT_KEYS`).  `nodes` is the number of its nodes, 1 where the scheduler does
    not say.  `asked` is what of the machine this job wants in place of what its environment says.
    `limits` are those that we are to set.  `owners` are processes whose life is the job's on this
    node: a sweep ends it when all of them are gone (hpcwrap/owners.py).  None where the scheduler
    itself is sure to run the epilog.
    """

    id: str
    scheduler: str
    user: User
    workdir: str
    node: str
    places: Tuple[Tuple[str, str], ...] = ()
    nodes: int = 1
    asked: Machine = Machine()
    limits: Limits = NO_LIMITS
    owners: Tuple[int, ...] = ()


def find_user(name_or_uid: str) -> User:
    """Look an account up by name or by decimal uid (pwd and group databases of the node).

    Raises UserError when there is no such account.
    """
    import pwd

    try:
        if name_or_uid.isdigit():
            entry = pwd.getpwuid(int(name_or_uid))
        else:
            entry = pwd.getpwnam(name_or_uid)
    except KeyError:
        raise UserError(
            f"cannot find the user {name_or_uid} on this node", "see `getent passwd`"
        ) from None
    return make_user(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell)


def make_user(name: str, uid: int, gid: int, home: str, shell: str) -> User:
    """Complete an account by its supplementary groups.

    One getgrouplist(3) call: walking all groups takes seconds at sites with 37 000 accounts.
    """
    import os

    try:
        groups = os.getgrouplist(name, gid)
    except OSError as error:
        raise SiteError(f"cannot read the groups of {name}: {error.strerror}") from error
    return User(name, uid, gid, tuple(sorted({gid, *groups})), home, shell or "/bin/sh")
