"""Users and groups as numbers, for the table that slurmctld looks up without asking anybody."""

from __future__ import annotations

import grp
import pwd
import re
from typing import Dict, List, Optional, Sequence

from hpcwrap.schedulers.slurm_table import Accounts

NSSWITCH = "/etc/nsswitch.conf"
LISTED = {"files", "compat", "systemd", "db"}
"""Sources of nsswitch.conf(5) that list all they know; directory services mostly do not."""


def find_accounts(
    users: Sequence[str], groups: Sequence[str], nsswitch: str = NSSWITCH
) -> Accounts:
    """Look up the users and groups that environments are limited to."""
    complete = can_list(nsswitch)
    return Accounts(
        uids={name: uid for name in users for uid in [find_uid(name)] if uid is not None},
        members={name: find_members(name) if complete else None for name in groups},
    )


def find_uid(name: str) -> Optional[int]:
    """Number of a user, None for a name that this host does not know."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def find_members(name: str) -> List[int]:
    """All members of a group: those it lists and those whose primary group it is."""
    try:
        group = grp.getgrnam(name)
    except KeyError:
        return []
    listed = {uid for member in group.gr_mem for uid in [find_uid(member)] if uid is not None}
    primary = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group.gr_gid}
    return sorted(listed | primary)


def can_list(nsswitch: str) -> bool:
    """True when this host can list all users and all groups."""
    sources: Dict[str, List[str]] = {"passwd": ["files"], "group": ["files"]}
    try:
        with open(nsswitch, encoding="utf-8") as file:
            for line in file:
                database, colon, rest = line.partition("#")[0].partition(":")
                if colon and database.strip() in sources:
                    sources[database.strip()] = re.sub(r"\[.*?\]", " ", rest).split()
    except OSError:
        return True
    return all(set(names) <= LISTED for names in sources.values())
