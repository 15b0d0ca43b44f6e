"""The job as every scheduler has it: whose it is, where it runs."""

from __future__ import annotations

from typing import NamedTuple, Tuple

from hpcwrap.errors import SiteError, UserError


class User(NamedTuple):
    """An account of this node: `groups` holds all numeric groups, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: Tuple[int, ...]
    home: str
    shell: str = "/bin/sh"


class Job(NamedTuple):
    """One job on one node.  `id` is unique on the node and names the job's directory.

    `nodes` is the number of its nodes, 1 where the scheduler does not say.
    """

    id: str
    scheduler: str
    user: User
    workdir: str
    node: str
    partition: str = ""
    account: str = ""
    nodes: int = 1


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
