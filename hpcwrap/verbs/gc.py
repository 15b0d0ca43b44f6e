"""hpcwrap image gc: remove what nobody needs from the store, and from this node's cache."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from typing import Dict, FrozenSet, Iterator, List, Tuple

from hpcwrap import paths
from hpcwrap.config import Config, load_config
from hpcwrap.errors import UserError
from hpcwrap.human import format_size, parse_size
from hpcwrap.image.collect import Item, Rules, collect
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Store

EPILOG = """\
An image goes when no environment names it and no job used it for `gc_days`;
when the store has grown above `store_size`, those go that were not used for the
longest time.  What a job of any node uses stays.  Run it from a timer, and on
each node that has a cache.

examples:
  hpcwrap image gc --dry-run     what would go, and why
  hpcwrap image gc               let it go
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this action."""
    parser.epilog = EPILOG
    parser.add_argument("--dry-run", "-n", action="store_true", help="say what would be removed")
    parser.add_argument(
        "--node", metavar="NAME", help="this node, as the scheduler calls it (default: host name)"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print warnings only")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Remove, item by item, and say how much that freed."""
    loaded = load_config(arguments.config)
    node = arguments.node or os.uname().nodename.partition(".")[0]
    told: List[Item] = []
    for store, rules in stores_of(loaded, node):
        for item in collect(store, rules, dry_run=arguments.dry_run):
            told.append(item)
            if item.kind != "lock" and not (arguments.json or arguments.quiet):
                print(sentence(item, dry_run=arguments.dry_run), flush=True)
    if arguments.json:
        print(json.dumps([document(item) for item in told], indent=2))
    elif not arguments.quiet:
        print(summary(told, loaded.settings.store, dry_run=arguments.dry_run))
    return 0


def stores_of(loaded: Config, node: str) -> List[Tuple[Store, Rules]]:
    """The stores that this node can clean, each with what may go there.

    Raises UserError for who may not write to the site's.
    """
    settings = loaded.settings
    site = writable(settings.store)
    rules = Rules(
        needed=needed(loaded),
        days=settings.gc_days,
        size=parse_size(settings.store_size),
        layers=parse_size(settings.layer_cache),
        node=node,
        living=living_jobs(),
        lease_days=settings.lease_days,
    )
    found = [(site, rules)]
    if settings.cache and os.path.isdir(settings.cache):
        own = rules._replace(needed=frozenset(), size=parse_size(settings.cache_size))
        found.append((writable(settings.cache), own))
    return found


def needed(loaded: Config) -> FrozenSet[str]:
    """Canonical texts of the images of all environments."""
    return frozenset(texts(loaded))


def texts(loaded: Config) -> Iterator[str]:
    """Canonical texts of the environments' images that can be read."""
    for environment in loaded.environments.values():
        with suppress(UserError):
            yield str(parse_source(environment.image))


def living_jobs() -> List[str]:
    """The jobs that have a container on this node.

    Raises UserError for who may not look: every lease would seem to be lost.
    """
    try:
        return os.listdir(paths.JOBS)
    except FileNotFoundError:
        return []
    except PermissionError:
        raise UserError(
            "cannot clean the store: you may not see which jobs this node has", "become root"
        ) from None


def writable(root: str) -> Store:
    """A store that is there and that we may change.

    Raises UserError.
    """
    store = Store(root)
    if not os.path.isdir(store.images_directory):
        raise UserError(f"cannot find a store in {root}", "hpcwrap pull NAME makes one")
    if not os.access(store.images_directory, os.W_OK):
        raise UserError(f"cannot change the store {root}: it is not yours", "become root")
    return store


def sentence(item: Item, *, dry_run: bool) -> str:
    """An item in one line."""
    verb = "would remove" if dry_run else "removed"
    size = f", {format_size(item.size)}" if item.size else ""
    return f"{verb} {item.kind} {item.name}{size}: {item.reason}"


def summary(items: List[Item], root: str, *, dry_run: bool) -> str:
    """What all of it comes to."""
    if not items:
        return f"nothing to remove in {root}"
    locks = sum(item.kind == "lock" for item in items)
    more = f"; {locks} unused lock files" if locks else ""
    size = format_size(sum(item.size for item in items))
    return f"{'would free' if dry_run else 'freed'} {size}{more}"


def document(item: Item) -> Dict[str, object]:
    """An item for a program."""
    return {"kind": item.kind, "name": item.name, "size": item.size, "reason": item.reason}
