"""The image user's part of a pull: from a resolved reference to a squashfs file.

    download (skopeo) ─▶ spools (igzip) ─▶ indexes ─▶ plan ─▶ mksquashfs

What comes from a file instead of a registry (local.py) is a download that is over soon.  A layer
is decompressed while it comes in, and indexed while others still do.  Runs in a worker's
process, in a directory of its own.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor  # noqa: F401  a lazy import would come too late
from contextlib import suppress
from typing import Any, Callable, Dict, List, Tuple

from hpcwrap import run
from hpcwrap.errors import UserError
from hpcwrap.image.digest import digest_of
from hpcwrap.image.download import OUTPUT, Download, Fetched, Format, Stopwatch
from hpcwrap.image.flatten import in_layer
from hpcwrap.image.layer import MAX_INDEX, Indexer, Layer
from hpcwrap.image.manifest import MAX_MANIFEST, Blob, load_json
from hpcwrap.image.plan import check_size, flatten
from hpcwrap.image.spool import Spool
from hpcwrap.image.squashfs import as_own_root, write_squashfs
from hpcwrap.image.store import CONFIG_KEYS, parse_config
from hpcwrap.image.tar import LayerError
from hpcwrap.image.worker import Progress, Report, hold

TICK = 0.01
REPORT_EVERY = 0.1
"""Seconds between looks at the children, and between two lines to the parent."""

FOLLOW_FROM = 1 << 20
"""Bytes that a blob has before its spool begins: smaller ones are whole in no time."""

INDEX_EVERY = 4 << 20
"""By how many bytes a spool has grown before the index goes on."""


def fetch(name: str, begin: Callable[[], Download], form: Format, report: Report) -> Fetched:
    """Download, merge and convert an image into the file OUTPUT of the working directory.

    name is the image's in messages.  Raises UserError when the image is broken, SiteError when
    something here or on the way is.
    """
    watch = Stopwatch()
    layers = _Layers(begin(), report)
    own_root = as_own_root()
    try:
        while layers.coming():
            layers.wait()
        watch.lap("download")
        while layers.unpacking():
            layers.wait()
        plan = flatten(layers.in_order())
        # Sparse files grow only now.
        check_size(plan.size, layers.sizes()[1])
    except LayerError as error:
        raise UserError(f"the image {name} is broken: {error.message}") from None
    watch.lap("unpack")
    throttled = _Throttle(report)
    pieces = write_squashfs(
        plan,
        layers.files(),
        OUTPUT,
        form,
        lambda done: throttled(lambda: [Progress("convert", "", done, plan.size)]),
        before=own_root,
    )
    hold()
    watch.lap("convert")
    manifest = layers.download.resolved.manifest
    return Fetched(
        config=_read_config(name, layers.download.blob_path(manifest.config)),
        compressed=sum(blob.size for blob in manifest.layers),
        unpacked=plan.size,
        entries=plan.entries,
        devices=plan.devices,
        milliseconds=watch.milliseconds,
        pieces=[(start, piece.hex()) for start, piece in pieces.items()],
    )


class _Unpacking:
    """A layer on its way from blob to index: decompressed, and indexed as far as it is there."""

    def __init__(self, path: str) -> None:
        self.spool = Spool(path)
        self.indexer = Indexer()
        self.seen = 0
        self.indexed = False

    def go_on(self, room: int) -> None:
        """Index what has come since the last time; `room` is what the index may cost.

        Raises LayerError, SiteError.
        """
        ended = self.spool.ended()
        size, _ = self.spool.sizes()
        if ended or size - self.seen >= INDEX_EVERY:
            self.seen = size
            self.indexer.extend(self.spool.view(), room, whole=ended)
            self.indexed = ended


class _Layers:
    """The layers of a download: each goes from blob to spool to index as soon as it can.

    Blobs have no name before they are whole; what follows them is known by the inode.
    """

    def __init__(self, download: Download, report: Report) -> None:
        self.download = download
        self.blobs = download.resolved.manifest.layers
        self.waiting: List[Blob] = list({blob.digest: blob for blob in self.blobs}.values())
        self.following: Dict[int, _Unpacking] = {}
        self.taken: Dict[str, _Unpacking] = {}
        self.throttled = _Throttle(report)
        self.counted = _Throttle(report)
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
        running = [digest for digest, each in self.taken.items() if not each.indexed]
        for digest in running:
            self._index(digest)
        check_size(*self.sizes())
        for blob in self.waiting[:]:
            if os.path.exists(self.download.blob_path(blob)):
                self._take(blob)
        missing = bool(self.waiting) or not all(each.indexed for each in self.taken.values())
        self.counted(lambda: [Progress("index", "", self._entries(), 0)], now=not missing)
        return missing

    def wait(self) -> None:
        """Wait until a process ends, or something may have come otherwise."""
        spools = [each.spool.process for each in self._all()]
        run.wait_for_any([*self.download.processes(), *spools], TICK)

    def sizes(self) -> Tuple[int, int]:
        """Bytes so far, unpacked and as they came: a manifest's own word counts for nothing."""
        sizes = [each.spool.sizes() for each in self._all()]
        return sum(unpacked for unpacked, _ in sizes), sum(came for _, came in sizes)

    def in_order(self) -> List[Layer]:
        """The indexes, lowest layer first."""
        return [self.taken[blob.digest].indexer.layer for blob in self.blobs]

    def files(self) -> List[Any]:
        """The spools' files, lowest layer first."""
        return [self.taken[blob.digest].spool.file for blob in self.blobs]

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
                    self.following[found.st_ino] = _Unpacking(item.path)
        for inode, each in [*self.following.items()]:
            each.go_on(self._room(each))  # raises when it has become too large
            if each.spool.abandoned():
                self.following.pop(inode).spool.give_up()

    def _take(self, blob: Blob) -> None:
        """Take a whole blob: what followed it goes on, or a new spool begins if there is room."""
        path = self.download.blob_path(blob)
        unpacking = self.following.pop(os.stat(path).st_ino, None)
        if unpacking is None:
            if sum(not each.indexed for each in self.taken.values()) >= self.slots:
                return
            unpacking = _Unpacking(path)
        unpacking.spool.finish()
        self.waiting.remove(blob)
        self.taken[blob.digest] = unpacking

    def _index(self, digest: str) -> None:
        unpacking = self.taken[digest]
        number = [blob.digest for blob in self.blobs].index(digest)
        try:
            unpacking.go_on(self._room(unpacking))
        except LayerError as error:
            raise in_layer(error, number, len(self.blobs)) from None

    def _all(self) -> List[_Unpacking]:
        return [*self.taken.values(), *self.following.values()]

    def _room(self, unpacking: _Unpacking) -> int:
        """What is left for the index of a layer."""
        costs = (each.indexer.layer.cost for each in self._all() if each is not unpacking)
        return MAX_INDEX - sum(costs)

    def _entries(self) -> int:
        return sum(len(each.indexer.layer) for each in self._all())


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
