"""Pull: what a source names becomes an image in the store.

The one function to read is `pull`.  What touches a registry or what it sent runs in a worker
(worker.py), as the site's image user when we are root; what lies on this machine is read as the
user who named it (reader.py).  Root itself only makes directories, takes locks and renames
finished files.
"""

from __future__ import annotations

from typing import (
    Dict,
    NamedTuple,
    Optional,
)

from hpcwrap.image.allow import check_source
from hpcwrap.image.cache import evict
from hpcwrap.image.puller import Puller, PullOptions
from hpcwrap.image.registrypull import RegistryPull
from hpcwrap.image.source import Source, parse_source
from hpcwrap.image.store import Image, Store, file_name
from hpcwrap.image.worker import Progress, Report
from hpcwrap.image.workspace import ensure_store, locked_unless


class Pulled(NamedTuple):
    """What a pull came to; `new` is False when the image was in the store already."""

    image: Image
    new: bool
    milliseconds: Dict[str, float]


def silent(progress: Progress) -> None:
    """Report progress to nobody."""


def pull(
    text: str,
    store: Store,
    options: Optional[PullOptions] = None,
    on_progress: Report = silent,
) -> Pulled:
    """Ask anew what a source is and have its image in the store afterwards, for this user.

    One puller works on a source and on an image at a time; the others wait and then find it.
    Raises UserError or SiteError with the source in the message.
    """
    source = parse_source(text)
    options = options or PullOptions()
    check_source(source, options.allow_images)
    puller = make_puller(source, store, options, on_progress)
    ensure_store(store)
    name = f"ref-{file_name(str(source), options.owner)}"
    arrived = puller.has_arrived
    new = False
    with locked_unless(store, name, puller.seconds, arrived, puller.say_wait) as held:
        if held and not arrived():
            new = puller.bring()
    image = puller.find()
    if new and options.store_size:
        evict(store, options.store_size, keep=(image.digest,))
    return Pulled(image, new, puller.watch.milliseconds)


def make_puller(source: Source, store: Store, options: PullOptions, on_progress: Report) -> Puller:
    """Make what pulls from a source of its kind."""
    if source.local:
        # Archives and formats that few pulls need: a tenth of the imports.
        from hpcwrap.image.filepull import FilePull

        return FilePull(source, store, options, on_progress)
    return RegistryPull(source, store, options, on_progress)
