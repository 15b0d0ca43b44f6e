"""What a file that holds an image is, by its first bytes; of a tar file, by its first names."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import BinaryIO, Iterator, Optional, Tuple

from hpcwrap import run
from hpcwrap.errors import UserError
from hpcwrap.image.plan import MAX_UNPACKED, most_unpacked
from hpcwrap.image.sif import is_sif
from hpcwrap.image.spool import MAGIC_LENGTH, decompressor
from hpcwrap.image.tar import BLOCK, LayerError, padding, read_number
from hpcwrap.image.worker import guarded, wide_pipe

TAR = "tar"
OCI_ARCHIVE = "oci-archive"
DOCKER_ARCHIVE = "docker-archive"
SQUASHFS = "squashfs"
SIF = "sif"

SQUASHFS_MAGIC = b"hsqs"
HEAD = 64

MARKERS = {b"manifest.json": DOCKER_ARCHIVE, b"oci-layout": OCI_ARCHIVE}
"""Files of an archive that a root file system has not got at its root: Docker's image-spec v1.2,
"Combined Image JSON + Filesystem Changeset Format", and OCI image-layout.md.  An archive of Docker
25 and newer has both; either way of reading it gives the same tree."""

_OF_ARCHIVE = re.compile(
    rb"(?:blobs|blobs/sha256|blobs/sha256/[0-9a-f]{64}|index\.json|repositories|oci-layout"
    rb"|manifest\.json|[0-9a-f]{64}(?:\.json|\.tar|/|/layer\.tar|/VERSION|/json)?)/?\Z"
)
_CHUNK = 1 << 20


def kind_of(path: str, wanted: str = "") -> str:
    """One of the kinds above: `wanted`, if the file can be taken for that and for another.

    Raises UserError, whose message is a predicate of the image, for a file that is none of them.
    """
    with open(path, "rb") as file:
        head = os.pread(file.fileno(), HEAD, 0)
        if head.startswith(SQUASHFS_MAGIC):
            return SQUASHFS
        if is_sif(head):
            return SIF
        with _plain(file, head[:MAGIC_LENGTH]) as stream:
            kind = _kind_of_tar(stream, wanted)
    if kind is None:
        raise UserError(
            "is no image that hpcwrap knows, or not a whole one",
            "it takes SIF and squashfs files, tar files of a root file system, "
            "and archives of docker save and of OCI layouts",
        )
    return kind


def make_plain(path: str, target: str) -> None:
    """Turn a file into one with another name that is not compressed.

    Raises UserError, whose message is a predicate of the image, for one of hot air.
    """
    with open(path, "rb") as file:
        magic = os.pread(file.fileno(), MAGIC_LENGTH, 0)
        if decompressor(magic) is None:
            os.rename(path, target)
            return
        most = most_unpacked(os.fstat(file.fileno()).st_size)
        with open(target, "xb") as copy, _plain(file, magic) as stream:
            while data := stream.read(_CHUNK):
                copy.write(data)
                if copy.tell() > most:
                    raise UserError(f"becomes more than {most} bytes when unpacked")
    os.unlink(path)


def _kind_of_tar(stream: BinaryIO, wanted: str) -> Optional[str]:
    """Read headers until one shows what it is: of a root file system, that is the first."""
    kind = None
    named = set()
    for name in _names(stream):
        found = MARKERS.get(name)
        if found and (found == wanted or wanted not in MARKERS.values()):
            return found
        if name and not _OF_ARCHIVE.match(name):
            return TAR
        kind = kind or found
        named.add(bool(name))
    # An empty root has the one name "./"; an archive that was cut off has no marker.
    return kind or (TAR if named == {False} else None)


def _names(stream: BinaryIO) -> Iterator[bytes]:
    """The names in a tar stream's headers, without ./, until its end or a header that is none."""
    while True:
        header = stream.read(BLOCK)
        found = _parse(header) if len(header) == BLOCK else None
        if found is None:
            return
        name, size = found
        yield name
        _skip(stream, size + padding(size))


def _parse(header: bytes) -> Optional[Tuple[bytes, int]]:
    """Name and size of the body; None for a block that is no header."""
    try:
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if read_number(header[148:156]) != total:
            return None
        size = read_number(header[124:136])
    except LayerError:
        return None
    if not 0 <= size <= MAX_UNPACKED:
        return None
    name = header[:100].partition(b"\0")[0]
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    # Headers for the next member, such as a long name, are nothing by themselves.
    special = header[156:157] in (b"x", b"g", b"L", b"K")
    return b"" if special or name == b"." else name, size


@contextmanager
def _plain(file: BinaryIO, magic: bytes) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed if they are compressed."""
    command = decompressor(magic)
    if command is None:
        yield file
        return
    reader, writer = wide_pipe()
    child = run.spawn(guarded(command), stdin=file, stdout=writer)
    os.close(writer)
    try:
        with open(reader, "rb") as stream:
            yield stream
    finally:
        child.kill()
        child.wait()


def _skip(stream: BinaryIO, size: int) -> None:
    if stream.seekable():
        stream.seek(size, os.SEEK_CUR)
        return
    while size > 0:
        data = stream.read(min(size, _CHUNK))
        if not data:
            return
        size -= len(data)
