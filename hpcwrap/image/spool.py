"""Spools: layers as plain tar streams, each in one file without a name.

A file without a name goes away with the process that holds it, however that ends.  It is written
once from front to back and read by mapping it; the kernel mostly never brings it to the disk.

A spool follows its blob: it decompresses what is there while skopeo still appends to it.  What
comes out counts only after finish(), when skopeo has compared the blob with its digest.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
import threading
from contextlib import suppress
from typing import IO, List, Optional, Tuple

from hpcwrap import run
from hpcwrap.errors import SiteError
from hpcwrap.image.plan import MAX_UNPACKED
from hpcwrap.image.tar import LayerError
from hpcwrap.image.worker import MAKE_ROOM, STORE_FULL, guarded, wide_pipe

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
XZ_MAGIC = b"\xfd7zXZ\0"
BZIP2_MAGIC = re.compile(rb"BZh[1-9]1AY&SY")
MAGIC_LENGTH = 10
"""Bytes that tell how a file is compressed; only files that users name are in xz or bzip2."""

LOOK_EVERY = 0.01
FLUSH_EVERY = 0.05
"""Seconds between looks whether a blob has grown, and between bringing it to the disk."""
COPY = 1 << 30
CHUNK = 1 << 20


class Spool:
    """A layer on its way to a plain tar stream."""

    def __init__(self, blob_path: str) -> None:
        # The files live as long as the spool: no with statement can close them.  While the blob is
        # open, no other file gets the number of its inode, by which it is known.
        self._blob: IO[bytes] = open(blob_path, "rb")  # noqa: SIM115
        self._finished = threading.Event()
        self._errors: IO[bytes] = tempfile.TemporaryFile(dir=".")  # noqa: SIM115
        self.file: IO[bytes] = self._blob
        command = decompressor(os.pread(self._blob.fileno(), MAGIC_LENGTH, 0))
        if command is None:
            self._child = None
            return
        self.file = tempfile.TemporaryFile(dir=".")  # noqa: SIM115
        reader, writer = wide_pipe()
        argv = guarded(command)
        self._child = run.spawn(argv, stdin=reader, stdout=self.file, stderr=self._errors)
        os.close(reader)
        threading.Thread(target=self._feed, args=(writer,), daemon=True).start()
        threading.Thread(target=self._flush, daemon=True).start()

    @property
    def process(self) -> Optional[run.Process]:
        """The decompressor; None for what is a plain tar stream already."""
        return self._child

    def finish(self) -> None:
        """Say that the blob is whole and is what its digest says."""
        self._finished.set()

    def abandoned(self) -> bool:
        """Whether the blob was removed: its download broke off, and skopeo began a new file."""
        return os.fstat(self._blob.fileno()).st_nlink == 0

    def give_up(self) -> None:
        """Stop decompressing; what there is goes away with this object."""
        self._finished.set()
        if self._child:
            self._child.kill()
            self._child.wait()

    def ended(self) -> bool:
        """Whether the whole layer is there.

        Raises LayerError when it cannot be decompressed, SiteError when the store is full.
        """
        code = self._child.poll() if self._child else 0
        if os.fstat(self.file.fileno()).st_size > MAX_UNPACKED:
            raise LayerError(f"holds more than {MAX_UNPACKED} bytes when unpacked")
        if code is None or not self._finished.is_set():
            return False
        if code:
            self._errors.seek(0)
            text = run.last_line(self._errors.read(1 << 16).decode(errors="replace"))
            if "No space left" in text or self._is_full():
                raise SiteError(f"cannot unpack the image: {STORE_FULL}", MAKE_ROOM)
            raise LayerError(f"cannot be decompressed, it is damaged or ends early: {text}")
        return True

    def _is_full(self) -> bool:
        # igzip says nothing when it cannot write (isal 2.30); pages that were promised to its file
        # are still taken.
        try:
            os.posix_fallocate(self.file.fileno(), os.fstat(self.file.fileno()).st_size, CHUNK)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return False

    def sizes(self) -> Tuple[int, int]:
        """Bytes so far, unpacked and as they came."""
        return os.fstat(self.file.fileno()).st_size, os.fstat(self._blob.fileno()).st_size

    def _feed(self, pipe: int) -> None:
        # A decompressor that fails reads no further.
        with suppress(BrokenPipeError), open(pipe, "wb"):
            finished = False
            while not finished:
                finished = self._finished.wait(LOOK_EVERY)
                while os.sendfile(pipe, self._blob.fileno(), None, COPY):
                    pass

    def _flush(self) -> None:
        # skopeo brings a whole blob to the disk before it names it (fsync), with everybody waiting:
        # so it finds less to do.  What fails here fails there, too.
        with suppress(OSError):
            while not self._finished.wait(FLUSH_EVERY):
                os.fdatasync(self._blob.fileno())

    def view(self) -> memoryview:
        """The plain tar stream."""
        if os.fstat(self.file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ))


def decompressor(magic: bytes) -> Optional[List[str]]:
    """The command that decompresses what begins like this, from stdin to stdout; None: plain tar.

    The bytes decide, not the media type: registries hold zstd layers that are labelled gzip.
    Raises SiteError when no program for it is installed.
    """
    if magic.startswith(GZIP_MAGIC):
        # igzip (isal) takes a third of pigz's time, which takes two thirds of gzip's.
        return [run.find_program("igzip", "pigz") or run.need_program("gzip", "gzip"), "-dc"]
    if magic.startswith(ZSTD_MAGIC):
        return [run.need_program("zstd", "zstd"), "-dcq", "-T0"]
    if magic.startswith(XZ_MAGIC):
        return [run.need_program("xz", "xz-utils"), "-dcq", "-T0"]
    if BZIP2_MAGIC.match(magic):
        return [run.need_program("bzip2", "bzip2"), "-dcq"]
    return None
