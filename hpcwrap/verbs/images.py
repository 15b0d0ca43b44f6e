"""hpcwrap images: what is in the store, whose it is, and who uses it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import log
from hpcwrap.config import Config, load_config
from hpcwrap.errors import UserError
from hpcwrap.human import format_age, format_size, parse_size
from hpcwrap.image.cache import last_use
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.lease import Lease, holders
from hpcwrap.image.refresh import warning
from hpcwrap.image.remove import find_by_digits, loop_device_of
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Image, Link, Store, parse_key
from hpcwrap.table import print_table

SHORT = 12
JOBS_SHOWN = 2
BETWEEN = 3
"""Columns between two cells of a table on a terminal (table.py)."""

HEADINGS = ("reference", "digest", "size", "for", "used", "pulled", "environments", "jobs")

EPILOG = """\
FOR is who may use an image: all, or the users whose private image it is.  A
reference "of" somebody is that user's own word for it (--container=REFERENCE).  JOBS
are those of any node; the image stays while there are any.  `hpcwrap rm`,
`hpcwrap image gc` and `hpcwrap image verify` take care of the rest.
"""


class Listed(NamedTuple):
    """An image under one of its references (empty: under none), the environments of that, the
    jobs that use it, and the loop device of this node that has it, if any.

    owner: the uid of the one user for whom the reference means this image, None for everyone.
    """

    reference: str
    owner: Optional[int]
    image: Image
    environments: List[str]
    jobs: List[Lease]
    device: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List the images; what cannot be read is a warning, not the end."""
    loaded = load_config(arguments.config)
    store = Store(loaded.settings.store)
    rows = listed(store, loaded)
    if arguments.json:
        print(json.dumps([_document(row) for row in rows], indent=2))
    elif rows:
        _show(rows)
        sys.stdout.flush()
        print(_summary(rows, loaded.settings.store_size), file=sys.stderr)
    else:
        log.say(f"no images in {store.root}; hpcwrap pull NAME fetches one")
    return 0


def listed(store: Store, loaded: Config) -> List[Listed]:
    """A row for each reference of each image, newest image first."""
    images, problems = store.images()
    links, more = store.links()
    for problem in problems + more:
        log.warn(f"{problem}; see hpcwrap image verify")
    for link in links:
        if link.failed:
            log.warn(f"{link.reference}: {warning(link)}")
    environments = environments_by_reference(loaded)
    rows = []
    for image in images:
        jobs, device = holders(store, image.digest), loop_device_of(image.squashfs) or ""
        for name, owner in _names(links, image.digest):
            users = environments.get(name, []) if owner is None else []
            rows.append(Listed(name, owner, image, users, jobs, device))
    return rows


def _names(links: Sequence[Link], digest: str) -> List[Tuple[str, Optional[int]]]:
    """The references of an image and whose they are; one empty name where there is none."""
    own = sorted(
        (x.reference, -1 if x.owner is None else x.owner) for x in links if x.digest == digest
    )
    return [(name, None if uid < 0 else uid) for name, uid in own] or [("", None)]


def environments_by_reference(loaded: Config) -> Dict[str, List[str]]:
    """Canonical text of a source → names of the environments that have it as their image."""
    users: Dict[str, List[str]] = {}
    for name, environment in sorted(loaded.environments.items()):
        try:
            reference = str(parse_source(environment.image))
        except UserError:
            continue  # `hpcwrap config --check` is there to say so
        users.setdefault(reference, []).append(name)
    return users


def digest_of_name(loaded: Config, store: Store, name: str) -> str:
    """The digest of the image that an environment, a reference, a digest or its digits name.

    Raises UserError when there is none, or when users have different images of that name.
    """
    environment = loaded.environments.get(name)
    digits = None if environment else find_by_digits(store, name)
    if digits is not None:
        return digits
    key, digest = parse_key(environment.image if environment else name)
    link = store.find_link(key)
    if link or digest:
        return link.digest if link else str(digest)
    return _users_image(store, name, key)


def _users_image(store: Store, name: str, key: str) -> str:
    """The digest of what users alone call so."""
    found = sorted({link.digest for link in store.links()[0] if link.reference == key})
    if not found:
        raise UserError(f"cannot find the image {name} in the store", "hpcwrap images lists them")
    if len(found) > 1:
        shown = ", ".join(hex_digits(digest)[:SHORT] for digest in found)
        raise UserError(f"cannot tell which image {name} is", f"name it by its digest: {shown}")
    return found[0]


def _show(rows: List[Listed]) -> None:
    """A table; on a terminal on which its lines would break, some lines for each image."""
    cells = [_cells(row) for row in rows]
    widths = [max(len(each) for each in column) + BETWEEN for column in zip(*cells, HEADINGS)]
    if not sys.stdout.isatty() or sum(widths) <= shutil.get_terminal_size().columns:
        print_table(HEADINGS, cells)
        return
    for one in cells:
        print("\n".join(_lines(dict(zip(HEADINGS, one)))), end="\n\n")


def _lines(cells: Dict[str, str]) -> Iterator[str]:
    yield cells["reference"]
    yield f"  {cells['digest']}  {cells['size']}  used {cells['used']}, pulled {cells['pulled']}"
    for name in ("for", "environments", "jobs"):
        if cells[name] not in ("all", "-"):
            yield f"  {name} {cells[name]}"


def _cells(row: Listed) -> List[str]:
    """A row of the table, in the order of HEADINGS."""
    image = row.image
    return [
        _reference(row),
        hex_digits(image.digest)[:SHORT],
        format_size(image.size),
        ", ".join(_account(uid) for uid in image.uids) or "all",
        format_age(last_use(image)),
        format_age(image.pulled),
        ", ".join(row.environments) or "-",
        _jobs(row),
    ]


def _reference(row: Listed) -> str:
    of = "" if row.owner is None else f" of {_account(row.owner)}"
    return f"{row.reference or '-'}{of}"


def _jobs(row: Listed) -> str:
    names = [f"{one.job} on {one.node}" for one in row.jobs]
    if not names:
        return row.device or "-"
    more = [f"{len(names) - JOBS_SHOWN} more"] if len(names) > JOBS_SHOWN else []
    return ", ".join(names[:JOBS_SHOWN] + more)


def _account(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _summary(rows: List[Listed], bound: str) -> str:
    sizes = {row.image.digest: row.image.size for row in rows}
    images = "1 image" if len(sizes) == 1 else f"{len(sizes)} images"
    of = f" of {bound}" if parse_size(bound) else ""
    return f"{images}, {format_size(sum(sizes.values()))}{of}"


def _document(row: Listed) -> Dict[str, object]:
    image = row.image
    return {
        "reference": row.reference or None,
        "owner": row.owner,
        "digest": image.digest,
        "size": image.size,
        "uids": list(image.uids),
        "used": last_use(image),
        "pulled": image.pulled,
        "squashfs": image.squashfs,
        "checksum": image.checksum,
        "environments": row.environments,
        "jobs": [one._asdict() for one in row.jobs],
        "loop_device": row.device or None,
    }
