"""Archives of image layouts, taken apart by the reader that layers have, which follows no link.

skopeo unpacks an OCI archive to read it, as the image user.  A link in it would lead to whatever
that user may read: the download of another user's private image, which runs beside ours.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from typing import Callable, Iterator, NamedTuple

from hpcwrap.errors import UserError
from hpcwrap.image.layer import index_layer
from hpcwrap.image.tar import DIRECTORY, END, FILE, Fields, LayerError, make_header, padding

_CHUNK = 1 << 20
_OF_LAYOUT = re.compile(rb"(?:oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})\Z")
_OF_SKOPEO = re.compile(rb"(?:.*/)?([0-9a-f]{64}|manifest\.json)\Z")
_DIRECTORIES = (b"blobs", b"blobs/sha256")


class Member(NamedTuple):
    """A plain file in an archive: its path there, where its bytes begin, and how many they are."""

    path: bytes
    start: int
    size: int


def purify(archive: str, target: str) -> None:
    """Copy an OCI archive that is not compressed, without what is no part of a layout.

    Raises UserError, whose message is a predicate of the image.
    """
    with open(archive, "rb") as source, open(target, "xb") as copy:
        for name in _DIRECTORIES:
            # skopeo gives root those that it makes itself, which only root may.
            copy.write(make_header(name, DIRECTORY, b"", Fields(0o755, 0, 0, 0, 0)))
        for member in _members(source.fileno()):
            if _OF_LAYOUT.match(member.path):
                fields = Fields(0o644, 0, 0, member.size, 0)
                copy.write(make_header(member.path, FILE, b"", fields))
                _pass_on(source.fileno(), member, copy.write)
                copy.write(bytes(padding(member.size)))
        copy.write(END)


def unpack_skopeo(archive: str, directory: str) -> None:
    """Take the files of skopeo's own layout out of a tar file; the blobs are what their names say.

    Raises UserError, whose message is a predicate of the image.
    """
    with open(archive, "rb") as source:
        for member in _members(source.fileno()):
            found = _OF_SKOPEO.match(member.path)
            if found:
                _unpack(source.fileno(), member, os.path.join(directory, found[1].decode()))


def _unpack(source: int, member: Member, path: str) -> None:
    hasher, name = hashlib.sha256(), os.path.basename(path)
    with open(path, "wb") as target:

        def take(data: bytes) -> None:
            hasher.update(data)
            target.write(data)

        _pass_on(source, member, take)
    if name != "manifest.json" and hasher.hexdigest() != name:
        raise UserError(f"is broken: the content of {name} has another digest")


def _members(source: int) -> Iterator[Member]:
    if not os.fstat(source).st_size:
        return
    try:
        with mmap.mmap(source, 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            layer = index_layer(view)
            for number in range(len(layer)):
                entry = layer.entry(number)
                if entry.kind == FILE and entry.fields.pieces is None:
                    yield Member(entry.path, entry.data, entry.fields.size)
    except LayerError as error:
        raise UserError(f"is broken: it {error.message}") from None


def _pass_on(source: int, member: Member, take: Callable[[bytes], object]) -> None:
    end = member.start + member.size
    for start in range(member.start, end, _CHUNK):
        take(os.pread(source, min(_CHUNK, end - start), start))
