"""hpcwrap image refresh: ask registries again what tags mean, and pull what has moved."""

from __future__ import annotations

import argparse
import json
from typing import Collection, List, NamedTuple, Optional

from hpcwrap.config import Config, load_config
from hpcwrap.errors import EXIT_SITE, HpcwrapError, UserError
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.puller import PullOptions, options_from
from hpcwrap.image.refresh import refresh
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Link, Store, parse_key
from hpcwrap.job import find_user
from hpcwrap.verbs import tables
from hpcwrap.verbs.gc import needed
from hpcwrap.verbs.pull import reference_of

EPILOG = """\
Jobs go on with the image that is there while a registry cannot be reached.
Run it on slurmctld's host, which then tells slurmctld of new digests.

examples:
  hpcwrap image refresh debian-12          one environment's image
  hpcwrap image refresh --all --quiet      all tags, for a timer
"""
SHORT = 12


class Refreshed(NamedTuple):
    """A reference, its digest before and now, and why it could not be looked up, or empty."""

    reference: str
    before: str
    now: str
    error: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "names", nargs="*", metavar="NAME|REFERENCE", help="environments or references"
    )
    parser.add_argument(
        "--all", action="store_true", help="all tags in the store, and the files of environments"
    )
    parser.add_argument(
        "--user", help="whose passwords to try where the site's and none are not enough"
    )
    parser.add_argument(
        "--own", action="store_true", help="what that user's jobs named, not the site's own"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Refresh, say what moved, and have new jobs pinned to it."""
    loaded = load_config(arguments.config)
    if bool(arguments.names) == arguments.all:
        raise UserError(
            "cannot tell what to refresh", "name an environment or a reference, or --all"
        )
    store = Store(loaded.settings.store)
    user = find_user(arguments.user) if arguments.user else None
    options = options_from(loaded.settings, user, named_by_user=arguments.own)
    if arguments.all:
        names = known_tags(store, files=needed(loaded))
    else:
        names = keys_of(loaded, arguments.names)
    done = [refresh_one(store, name, options) for name in names]
    tables.renew(arguments.config)
    if arguments.json:
        print(json.dumps([each._asdict() for each in done], indent=2))
    else:
        show(done, quiet=arguments.quiet)
    return EXIT_SITE if any(each.error for each in done) else 0


def known_tags(store: Store, files: Collection[str]) -> List[str]:
    """References in the store whose digest can change and that are everyone's; of files these.

    What somebody once pulled of a file by hand may be gone, or not the image user's to read.
    """
    return [
        link.reference
        for link in store.links()[0]
        if is_everyones_tag(store, link)
        and (link.reference in files or not parse_source(link.reference).local)
    ]


def is_everyones_tag(store: Store, link: Link) -> bool:
    """Whether a timer can look it up; a private image is refreshed by the jobs of its users."""
    _, digest = parse_key(link.reference)
    image = store.find_digest(link.digest)
    return digest is None and link.owner is None and (image is None or not image.uids)


def keys_of(loaded: Config, names: List[str]) -> List[str]:
    """Canonical texts of environments and references."""
    return [str(parse_source(reference_of(loaded, name))) for name in names]


def refresh_one(store: Store, name: str, options: PullOptions) -> Refreshed:
    """Refresh one reference; an error is part of the result, for the others may work."""
    before = digest_of(store.find_link(name, options.owner))
    try:
        return Refreshed(name, before, refresh(store, name, options).image.digest)
    except HpcwrapError as error:
        return Refreshed(name, before, before, error.sentence())


def digest_of(link: Optional[Link]) -> str:
    """The digest that a link has, empty without a link."""
    return link.digest if link else ""


def show(done: List[Refreshed], *, quiet: bool) -> None:
    """A line for each reference; when quiet, for those alone that failed."""
    for each in done:
        if each.error or not quiet:
            print(sentence(each))


def sentence(each: Refreshed) -> str:
    """What became of a reference."""
    if each.error:
        return f"{each.reference} stays as it is: {each.error}" if each.before else each.error
    short = hex_digits(each.now)[:SHORT]
    if each.before == each.now:
        return f"{each.reference} is still {short}"
    was = f", was {hex_digits(each.before)[:SHORT]}" if each.before else ""
    return f"{each.reference} is now {short}{was}"
