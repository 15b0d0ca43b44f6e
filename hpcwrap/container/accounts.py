"""passwd(5) and group(5) of a container.

The image's own entries stay, for its daemons' files; the job's user and groups are put first and
displace entries of the same name or number.  Only the user's own groups are looked up: reading
all accounts takes 12 s at a site with 37 000 of them.
"""

from __future__ import annotations

import grp
from typing import NamedTuple, Tuple

from hpcwrap.job import User


class Database(NamedTuple):
    """One of the two files: what the job adds, and what stands in when the image has none."""

    path: str
    entries: Tuple[bytes, ...]
    minimum: Tuple[bytes, ...]


def passwd(user: User) -> Database:
    """The user's line of passwd(5)."""
    line = f"{user.name}:x:{user.uid}:{user.gid}:{user.name}:{user.home}:{user.shell}"
    minimum = (
        b"root:x:0:0:root:/root:/bin/sh",
        b"nobody:x:65534:65534:nobody:/nonexistent:/bin/false",
    )
    return Database("/etc/passwd", (line.encode(),), minimum)


def group(user: User) -> Database:
    """A line of group(5) for each of the user's groups; groups without a name are left out."""
    lines = []
    for gid in user.groups:
        try:
            name = grp.getgrgid(gid).gr_name
        except KeyError:
            continue
        members = "" if gid == user.gid else user.name
        lines.append(f"{name}:x:{gid}:{members}".encode())
    return Database("/etc/group", tuple(lines), (b"root:x:0:", b"nogroup:x:65534:"))


def merge(image: bytes, database: Database) -> bytes:
    """Put the entries before those of the image that have neither their names nor numbers."""
    names = {_field(entry, 0) for entry in database.entries}
    numbers = {_field(entry, 2) for entry in database.entries}
    kept = [
        line
        for line in image.splitlines()
        if line.count(b":") >= 2 and _field(line, 0) not in names and _field(line, 2) not in numbers
    ]
    return b"\n".join([*database.entries, *(kept or database.minimum), b""])


def _field(line: bytes, number: int) -> bytes:
    return line.split(b":")[number]
