"""What goes into a conversion and what comes out: light, for convert.py takes long to import.

convert.py is imported while a worker waits for the registry.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, List, NamedTuple, Protocol, Tuple

from hpcwrap import run
from hpcwrap.image.manifest import Blob
from hpcwrap.image.transport import Resolved

OUTPUT = "image.sqsh"


class Format(NamedTuple):
    """How a squashfs is compressed: zstd, gzip, lz4 or xz, and the level of the first two."""

    compression: str = "zstd"
    level: int = 1


class Download(Protocol):
    """Blobs on their way to this machine; its methods raise UserError or SiteError."""

    resolved: Resolved

    def blob_path(self, blob: Blob) -> str:
        """Where a blob lies once it is whole."""

    def ended(self) -> bool:
        """Whether all is here; to be called again and again until it is."""

    def sizes(self) -> Dict[str, int]:
        """Bytes that are here of each layer, by digest."""

    def processes(self) -> List[run.Process]:
        """Those whose end is the next thing to happen."""

    def notice(self) -> str:
        """Why nothing comes just now, for a person; "" while something does."""

    def unfinished(self) -> List[os.DirEntry[str]]:
        """Files that grow and get the name of a blob when they are whole."""


class Fetched(NamedTuple):
    """What is known of a squashfs that was made: sizes in bytes, times in ms.

    pieces are those of its checksum that are made already, (start, sha256 in hex).
    """

    config: Dict[str, Any]
    compressed: int
    unpacked: int
    entries: int
    devices: int
    milliseconds: Dict[str, float]
    pieces: List[Tuple[int, str]]


class Stopwatch:
    """Times of the stages of a pull, in ms."""

    def __init__(self) -> None:
        self.milliseconds: Dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now = time.monotonic()
        self.milliseconds[stage] = round((now - self._last) * 1e3, 1)
        self._last = now

    def skip(self) -> None:
        """Count the time since the last stage for none: somebody else did."""
        self._last = time.monotonic()
