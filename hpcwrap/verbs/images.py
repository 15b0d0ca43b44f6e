"""hpcwrap images: what is in the store."""

from __future__ import annotations

import argparse
import json
from typing import Dict, List, NamedTuple

from hpcwrap import log
from hpcwrap.config import Config, load_config
from hpcwrap.errors import UserError
from hpcwrap.human import format_age, format_size
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Image, Store
from hpcwrap.table import print_table

SHORT = 12


class Listed(NamedTuple):
    """An image under one of its references (empty: under none), and the environments of that."""

    reference: str
    image: Image
    environments: List[str]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List the images; what cannot be read is a warning, not the end."""
    loaded = load_config(arguments.config)
    store = Store(loaded.settings.store)
    rows = listed(store, loaded)
    if arguments.json:
        print(json.dumps([_document(row) for row in rows], indent=2))
    elif rows:
        headings = ("reference", "digest", "size", "pulled", "environments")
        print_table(headings, [_cells(row) for row in rows])
    else:
        log.say(f"no images in {store.root}; hpcwrap pull NAME fetches one")
    return 0


def listed(store: Store, loaded: Config) -> List[Listed]:
    """A row for each reference of each image, newest image first."""
    images, problems = store.images()
    links, more = store.links()
    for problem in problems + more:
        log.warn(problem)
    users = environments_by_reference(loaded)
    rows = []
    for image in images:
        names = sorted(link.reference for link in links if link.digest == image.digest)
        rows += [Listed(name, image, users.get(name, [])) for name in names or [""]]
    return rows


def environments_by_reference(loaded: Config) -> Dict[str, List[str]]:
    """Canonical reference → names of the environments that have it as their image."""
    users: Dict[str, List[str]] = {}
    for name, environment in sorted(loaded.environments.items()):
        try:
            reference = str(parse_source(environment.image))
        except UserError:
            continue  # `hpcwrap config --check` is there to say so
        users.setdefault(reference, []).append(name)
    return users


def _cells(row: Listed) -> List[str]:
    return [
        row.reference or "-",
        hex_digits(row.image.digest)[:SHORT],
        format_size(row.image.size),
        format_age(row.image.pulled),
        ", ".join(row.environments) or "-",
    ]


def _document(row: Listed) -> Dict[str, object]:
    image = row.image
    return {
        "reference": row.reference or None,
        "digest": image.digest,
        "size": image.size,
        "pulled": image.pulled,
        "squashfs": image.squashfs,
        "environments": row.environments,
    }
