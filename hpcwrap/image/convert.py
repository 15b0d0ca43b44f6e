"""The image user's part of a pull: from a resolved reference to a squashfs file.

    download (skopeo) ─▶ spools (igzip) ─▶ indexes ─▶ plan ─▶ mksquashfs

What comes from a file instead of a registry (local.py) is a download that is over soon.  A layer
is decompressed while it comes in, and indexed while others still do.  Runs in a worker's
process, in a directory of its own.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, Callable, Dict, List, NamedTuple, Protocol, Tuple

from hpcwrap.errors import UserError
from hpcwrap.image.digest import digest_of
from hpcwrap.image.flatten import in_layer
from hpcwrap.image.layer import MAX_INDEX, Layer, index_layer
from hpcwrap.image.manifest import MAX_MANIFEST, Blob, load_json
from hpcwrap.image.plan import check_size, flatten
from hpcwrap.image.spool import Spool
from hpcwrap.image.squashfs import Format, write_squashfs
from hpcwrap.image.store import CONFIG_KEYS, parse_config
from hpcwrap.image.tar import LayerError
from hpcwrap.image.transport import Resolved
from hpcwrap.image.worker import Progress, Report

OUTPUT = "image.sqsh"
TICK = 0.01
REPORT_EVERY = 0.1
"""Seconds between looks at the children, and between two lines to the parent."""

FOLLOW_FROM = 1 << 20
"""Bytes that a blob has before its spool begins: smaller ones are whole in no time."""


class Download(Protocol):
    """Blobs on their way to this machine; its methods raise UserError or SiteError."""

    resolved: Resolved

    def blob_path(self, blob: Blob) -> str:
        """Where a blob lies once it is whole."""

    def ended(self) -> bool:
        """Whether all is here; to be called again and again until it is."""

    def sizes(self) -> Dict[str, int]:
        """Bytes that are here of each layer, by digest."""

    def notice(self) -> str:
        """Why nothing comes just now, for a person; "" while something does."""

    def unfinished(self) -> List[os.DirEntry[str]]:
        """Files that grow and get the name of a blob when they are whole."""


class Fetched(NamedTuple):
    """What is known of a squashfs that was made: sizes in bytes, times in ms."""

    config: Dict[str, Any]
    compressed: int
    unpacked: int
    entries: int
    devices: int
    milliseconds: Dict[str, float]


def fetch(name: str, begin: Callable[[], Download], form: Format, report: Report) -> Fetched:
    """Download, merge and convert an image into the file OUTPUT of the working directory.

    name is the image's in messages.  Raises UserError when the image is broken, SiteError when
    something here or on the way is.
    """
    watch = Stopwatch()
    layers = _Layers(begin(), report)
    try:
        while layers.coming():
            time.sleep(TICK)
        watch.lap("download")
        while layers.unpacking():
            time.sleep(TICK)
        plan = flatten(layers.in_order())
        # Sparse files grow only now.
        check_size(plan.size, layers.sizes()[1])
    except LayerError as error:
        raise UserError(f"the image {name} is broken: {error.message}") from None
    watch.lap("unpack")
    throttled = _Throttle(report)
    write_squashfs(
        plan,
        layers.files(),
        OUTPUT,
        form,
        lambda done: throttled(lambda: [Progress("convert", "", done, plan.size)]),
    )
    watch.lap("convert")
    manifest = layers.download.resolved.manifest
    return Fetched(
        config=_read_config(name, layers.download.blob_path(manifest.config)),
        compressed=sum(blob.size for blob in manifest.layers),
        unpacked=plan.size,
        entries=plan.entries,
        devices=plan.devices,
        milliseconds=watch.milliseconds,
    )


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


class _Layers:
    """The layers of a download: each goes from blob to spool to index as soon as it can.

    Blobs have no name before they are whole; the spools that follow them are known by the inode.
    """

    def __init__(self, download: Download, report: Report) -> None:
        self.download = download
        self.blobs = download.resolved.manifest.layers
        self.waiting: List[Blob] = list({blob.digest: blob for blob in self.blobs}.values())
        self.following: Dict[int, Spool] = {}
        self.spools: Dict[str, Spool] = {}
        self.indexes: Dict[str, Layer] = {}
        self.report = report
        self.throttled = _Throttle(report)
        self.slots = len(os.sched_getaffinity(0))

    def coming(self) -> bool:
        """Do what can be done now; whether the download goes on."""
        ended = self.download.ended()
        self.throttled(self._downloads, now=ended)
        self._follow()
        self.unpacking()
        return not ended

    def unpacking(self) -> bool:
        """Do what can be done now; whether layers are still missing in the index."""
        running = [digest for digest in self.spools if digest not in self.indexes]
        for digest in running:
            self._index(digest)
        check_size(*self.sizes())
        for blob in self.waiting[:]:
            if os.path.exists(self.download.blob_path(blob)):
                self._take(blob)
        return bool(self.waiting) or len(self.indexes) < len(self.spools)

    def sizes(self) -> Tuple[int, int]:
        """Bytes so far, unpacked and as they came: a manifest's own word counts for nothing."""
        sizes = [spool.sizes() for spool in (*self.spools.values(), *self.following.values())]
        return sum(unpacked for unpacked, _ in sizes), sum(came for _, came in sizes)

    def in_order(self) -> List[Layer]:
        """The indexes, lowest layer first."""
        return [self.indexes[blob.digest] for blob in self.blobs]

    def files(self) -> List[Any]:
        """The spools' files, lowest layer first."""
        return [self.spools[blob.digest].file for blob in self.blobs]

    def _downloads(self) -> List[Progress]:
        sizes = self.download.sizes()
        notice = Progress("notice", self.download.notice(), 0, 0)
        return [notice] + [
            Progress("download", blob.digest, sizes.get(blob.digest, 0), blob.size)
            for blob in self.blobs
        ]

    def _follow(self) -> None:
        """Begin with the blobs that skopeo still writes: it takes a few at a time."""
        for item in self.download.unfinished():
            # Renamed by now, it has either its spool already or is taken when it is whole.
            with suppress(FileNotFoundError):
                found = item.stat()
                if found.st_ino not in self.following and found.st_size >= FOLLOW_FROM:
                    self.following[found.st_ino] = Spool(item.path)
        for inode, spool in [*self.following.items()]:
            spool.ended()  # raises when it has become too large
            if spool.abandoned():
                self.following.pop(inode).give_up()

    def _take(self, blob: Blob) -> None:
        """Give a whole blob its spool: the one that followed it, or a new one if there is room."""
        path = self.download.blob_path(blob)
        spool = self.following.pop(os.stat(path).st_ino, None)
        if spool is None:
            if len(self.spools) - len(self.indexes) >= self.slots:
                return
            spool = Spool(path)
        spool.finish()
        self.waiting.remove(blob)
        self.spools[blob.digest] = spool

    def _index(self, digest: str) -> None:
        spool = self.spools[digest]
        number = [blob.digest for blob in self.blobs].index(digest)
        try:
            if spool.ended():
                self.indexes[digest] = index_layer(spool.view(), self._on_entries, self._room())
                self._on_entries(0)
        except LayerError as error:
            raise in_layer(error, number, len(self.blobs)) from None

    def _room(self) -> int:
        return MAX_INDEX - sum(layer.cost for layer in self.indexes.values())

    def _on_entries(self, more: int) -> None:
        entries = more + sum(len(layer) for layer in self.indexes.values())
        self.report(Progress("index", "", entries, 0))


class _Throttle:
    """Passes progress on, but not more often than a person can see."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._next = 0.0

    def __call__(self, look: Callable[[], List[Progress]], now: bool = False) -> None:
        if now or time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_EVERY
            for item in look():
                self._report(item)


def _read_config(name: str, path: str) -> Dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read(MAX_MANIFEST + 1)
    try:
        if len(content) > MAX_MANIFEST or digest_of(content)[7:] != os.path.basename(path):
            raise ValueError("it is too large or changed on its way")
        config = load_json(content).get("config") or {}
        parse_config(config)
    except (ValueError, AttributeError) as error:
        raise UserError(f"the image {name} is broken: its configuration: {error}") from None
    return {key: config[key] for key in CONFIG_KEYS if key in config}
