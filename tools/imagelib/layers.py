"""Layers as lists of tar entries: read, compare, write the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from typing import BinaryIO, Iterable, NamedTuple, Optional

from imagelib.commands import EPOCH

# OCI image specification, "Layer Filesystem Changeset": an empty file `.wh.NAME` removes NAME,
# `.wh..wh..opq` removes all that the layers below have in its directory.
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"


class Entry(NamedTuple):
    """One entry of a layer; the body of a regular file is `body`, or a place in the file `tar`."""

    header: tarfile.TarInfo
    body: bytes = b""
    tar: Optional[str] = None

    @property
    def name(self) -> str:
        """Path below the root, without a leading slash."""
        return self.header.name

    def open(self) -> BinaryIO:
        """The body, ready to read `header.size` bytes."""
        if self.tar is None:
            return io.BytesIO(self.body)
        file = open(self.tar, "rb")  # noqa: SIM115  (the caller's `with` closes it)
        file.seek(self.header.offset_data)
        return file


def file_entry(name: str, body: bytes, mode: int = 0o644) -> Entry:
    """A regular file of root's."""
    header = make_header(name, tarfile.REGTYPE, mode)
    header.size = len(body)
    return Entry(header, body)


def directory_entry(name: str, mode: int = 0o755) -> Entry:
    """A directory of root's."""
    return Entry(make_header(name, tarfile.DIRTYPE, mode))


def link_entry(name: str, target: str, *, hard: bool = False) -> Entry:
    """A symbolic link, or a second name of the file `target`."""
    header = make_header(name, tarfile.LNKTYPE if hard else tarfile.SYMTYPE, 0o777)
    header.linkname = target
    return Entry(header)


def whiteout_entry(name: str) -> Entry:
    """Remove `name` and all below it from the layers below."""
    directory, base = os.path.split(name)
    return file_entry(os.path.join(directory, WHITEOUT + base), b"", 0)


def opaque_entry(directory: str) -> Entry:
    """Hide what the layers below have in `directory`."""
    return file_entry(os.path.join(directory, OPAQUE), b"", 0)


def make_header(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """A header with root as owner and the one time of everything made here."""
    header = tarfile.TarInfo(name)
    header.type, header.mode, header.mtime = kind, mode, EPOCH
    header.uname = header.gname = "root"
    return header


def read_entries(tar: str) -> list[Entry]:
    """The entries of an uncompressed tar, under names without a leading `./`, less the root's."""
    entries = []
    with tarfile.open(tar, "r:") as file:
        for header in file:
            header.name = header.name[2:] if header.name.startswith("./") else header.name
            if header.islnk() and header.linkname.startswith("./"):
                header.linkname = header.linkname[2:]
            if header.name not in ("", "."):
                entries.append(Entry(header, tar=tar))
    return entries


def difference(below: list[Entry], above: list[Entry]) -> list[Entry]:
    """The layer that turns `below` into `above`: changed entries, their parents, whiteouts."""
    known = {entry.name: fingerprint(entry) for entry in below}
    changed = {entry.name for entry in above if known.get(entry.name) != fingerprint(entry)}
    wanted = with_parents(with_other_names(changed, above))
    entries = [entry for entry in above if entry.name in wanted]
    return entries + whiteouts(below, above)


def whiteouts(below: list[Entry], above: list[Entry]) -> list[Entry]:
    """A whiteout for each entry that is gone, but not for what is below it."""
    gone = {entry.name for entry in below} - {entry.name for entry in above}
    return [whiteout_entry(name) for name in sorted(gone) if os.path.dirname(name) not in gone]


def with_other_names(names: set[str], entries: list[Entry]) -> set[str]:
    """`names` and all other names of the same files: a hard link ends at its layer's border."""
    targets = {entry.header.linkname for entry in entries if entry.header.islnk()}
    first = {entry.name: entry.header.linkname for entry in entries if entry.header.islnk()}
    touched = {first.get(name, name) for name in names} & targets
    return names | touched | {name for name, target in first.items() if target in touched}


def with_parents(names: set[str]) -> set[str]:
    """`names` and all directories above them."""
    whole = set(names)
    for name in names:
        parent = os.path.dirname(name)
        while parent and parent not in whole:
            whole.add(parent)
            parent = os.path.dirname(parent)
    return whole


def fingerprint(entry: Entry) -> tuple[object, ...]:
    """What makes two entries the same; times do not."""
    header = entry.header
    owner = (header.uid, header.gid, header.mode)
    device = (header.devmajor, header.devminor)
    extended = tuple(sorted(header.pax_headers.items()))
    return (header.type, owner, device, header.linkname, extended, body_digest(entry))


def body_digest(entry: Entry) -> str:
    """The digest of a regular file's body."""
    with entry.open() as file:
        return hashlib.sha256(file.read(entry.header.size)).hexdigest()


def write_tar(entries: Iterable[Entry], output: BinaryIO) -> None:
    """Write a layer; directories end up before what is in them, links after their targets."""
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            with entry.open() as body:
                tar.addfile(entry.header, body if entry.header.isreg() else None)
