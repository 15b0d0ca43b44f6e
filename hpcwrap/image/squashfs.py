"""Write a squashfs: the planned tar stream into mksquashfs, bodies by sendfile(2)."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager
from typing import IO, Callable, Dict, Iterator, List, Sequence

from hpcwrap import run
from hpcwrap.errors import SiteError
from hpcwrap.image.checksum import EarlyPieces, Pieces
from hpcwrap.image.download import Format
from hpcwrap.image.plan import ZEROS, Plan, Range
from hpcwrap.image.worker import MAKE_ROOM, STORE_FULL, guarded, wide_pipe

CHUNK = 4 << 20
FLUSH_EVERY = 0.1
WAIT = 0.1
_ZEROS = bytes(1 << 20)
_NULL = -3  # subprocess.DEVNULL
_LEVELS = ("zstd", "gzip")


def command(output: str, plan: Plan, form: Format) -> List[str]:
    """The mksquashfs command that reads the plan's tar stream (docs/decisions/0012)."""
    argv = [run.need_program("mksquashfs", "squashfs-tools 4.5 or newer"), "-", output]
    argv += ["-tar", "-noappend", "-no-progress", "-quiet"]
    # It can leave out none by name: only what pax.user_attributes() lets through reaches it.
    argv += ["-xattrs" if plan.tagged else "-no-xattrs"]
    processors = len(os.sched_getaffinity(0))
    argv += ["-processors", str(processors)]
    argv += ["-mem", f"{waiting(processors) >> 20}M"]
    argv += ["-root-mode", f"{plan.root.mode:o}"]
    argv += ["-root-uid", str(plan.root.uid), "-root-gid", str(plan.root.gid)]
    argv += ["-comp", form.compression]
    if form.compression in _LEVELS:
        argv += ["-Xcompression-level", str(form.level)]
    return argv


def waiting(processors: int) -> int:
    """Bytes of blocks that may wait in mksquashfs for a processor or the disk.

    By default a quarter of the machine's memory, and the node has jobs.  More than this is no
    faster (docs/decisions/0018).
    """
    return (32 + 2 * processors) << 20


def environment(plan: Plan) -> Dict[str, str]:
    """The environment of mksquashfs: the same image gives the same bytes, whenever it is made.

    The root directory has the time of the conversion, whatever the options say, and times after
    SOURCE_DATE_EPOCH become that (squashfs-tools 4.5.1, tar.c, process_tar_file).
    """
    return run.base_environment(SOURCE_DATE_EPOCH=str(plan.newest))


def as_own_root() -> List[str]:
    """The words before a command that make it root in a user namespace, if users may do that.

    mksquashfs 4.5 gives a tar's root directory to its caller, in spite of -root-uid.
    """
    unshare = run.find_program("unshare")
    words = [unshare or "unshare", "--user", "--map-root-user", "--"]
    if unshare is None:
        return []
    probe = run.spawn([*words, "/bin/true"], stderr=_NULL)
    return [] if probe.wait() else words


def write_squashfs(
    plan: Plan,
    spools: Sequence[IO[bytes]],
    output: str,
    form: Format,
    on_bytes: Callable[[int], None],
    *,
    before: Sequence[str] = (),
) -> Pieces:
    """Write the squashfs of a plan; on_bytes is told how much of plan.size has gone in.

    `before` are the words before the command, those of as_own_root.

    Returns those pieces of its checksum that were made meanwhile.  Raises SiteError.
    """
    early = EarlyPieces(plan.largest, waiting(len(os.sched_getaffinity(0))))
    with tempfile.TemporaryFile(dir=".") as errors, _flushed(output, early):
        reader, writer = wide_pipe()
        argv = [*before, *guarded(command(output, plan, form))]
        child = run.spawn(argv, stdin=reader, stdout=errors, stderr=errors, env=environment(plan))
        os.close(reader)
        try:
            _write_stream(plan, [spool.fileno() for spool in spools], writer, on_bytes)
        except BrokenPipeError:
            pass  # mksquashfs has gone: its exit code and words say more
        finally:
            os.close(writer)
        while child.poll() is None:
            on_bytes(plan.size)
            run.wait_for_any([child], WAIT)
        if child.returncode:
            errors.seek(0)
            raise _failed(errors.read(1 << 16).decode(errors="replace"))
    return early.pieces


@contextmanager
def _flushed(path: str, early: EarlyPieces) -> Iterator[None]:
    """Bring a file to the disk while it is written, and begin with its checksum.

    The fsync and the checksum at the end find little to do.
    """
    ended = threading.Event()
    failed: List[OSError] = []
    thread = threading.Thread(target=_flush, args=(path, early, ended, failed), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    # The kernel tells of an error in writing once (fsync(2)): the one at the end would not know.
    if failed:
        raise SiteError(f"cannot convert the image: the store says {failed[0].strerror}")


def _flush(path: str, early: EarlyPieces, ended: threading.Event, failed: List[OSError]) -> None:
    try:
        while not os.path.exists(path):
            if ended.wait(FLUSH_EVERY):
                return
        with open(path, "rb") as file:
            while not ended.wait(FLUSH_EVERY):
                os.fdatasync(file.fileno())
                early.look(file.fileno())
    except OSError as error:
        failed.append(error)


def _write_stream(
    plan: Plan, spools: Sequence[int], pipe: int, on_bytes: Callable[[int], None]
) -> None:
    written = 0
    for segment in plan.segments:
        if isinstance(segment, bytes):
            written += _write_all(pipe, segment)
        elif segment.layer == ZEROS:
            written += _write_zeros(pipe, segment.end)
        else:
            for part in _parts(segment):
                _send(pipe, spools[segment.layer], part)
                written += part.end - part.start
                on_bytes(written)


def _parts(segment: Range) -> List[Range]:
    return [
        Range(segment.layer, start, min(start + CHUNK, segment.end))
        for start in range(segment.start, segment.end, CHUNK)
    ]


def _send(pipe: int, spool: int, part: Range) -> None:
    start = part.start
    while start < part.end:
        # Page references go into the pipe: the bytes are copied once, by mksquashfs (sendfile(2)).
        sent = os.sendfile(pipe, spool, start, part.end - start)
        if not sent:
            raise SiteError("cannot convert the image: a layer shrank while it was read")
        start += sent


def _write_all(pipe: int, data: bytes) -> int:
    left = memoryview(data)
    while left:
        left = left[os.write(pipe, left) :]
    return len(data)


def _write_zeros(pipe: int, size: int) -> int:
    for start in range(0, size, len(_ZEROS)):
        _write_all(pipe, _ZEROS[: size - start])
    return size


def _failed(stderr: str) -> SiteError:
    if "No space left" in stderr:
        return SiteError(f"cannot convert the image: {STORE_FULL}", MAKE_ROOM)
    lines = [line for line in stderr.splitlines() if "FATAL" in line or "ERROR" in line]
    return SiteError(f"cannot convert the image: mksquashfs says {(lines or [stderr])[-1].strip()}")
