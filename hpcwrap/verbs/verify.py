"""hpcwrap image verify: is everything in the store what was put there?"""

from __future__ import annotations

import argparse
import json
import os
from typing import Iterator, List

from hpcwrap.config import Config, load_config
from hpcwrap.errors import EXIT_SITE
from hpcwrap.image.collect import unfinished
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import options_from
from hpcwrap.image.store import Store
from hpcwrap.image.verify import Finding, PullAgain, verify, verify_links
from hpcwrap.verbs.gc import writable
from hpcwrap.verbs.images import digest_of_name
from hpcwrap.verbs.meter import OnBytes, meter
from hpcwrap.verbs.pullview import count

LEFTOVER = "leftover"

EPILOG = """\
Reads every squashfs and compares it with the checksum that it had when it was
made.  With --repair, what is damaged is set aside (in `aside` of the store, from
which gc removes it after `gc_days`) and pulled again by its digest.  The exit
code is 3 when something is left that is damaged.

examples:
  hpcwrap image verify               all images and references
  hpcwrap image verify debian-12     one environment's image
  hpcwrap image verify --repair      mend what is damaged, clean up after kills
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this action."""
    parser.epilog = EPILOG
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="environments, references or digests; all if none",
    )
    parser.add_argument("--repair", action="store_true", help="set damage aside and pull it again")
    parser.add_argument("--quiet", "-q", action="store_true", help="print what is damaged only")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check, tell what is damaged, and what became of it."""
    loaded = load_config(arguments.config)
    root = loaded.settings.store
    store = writable(root) if arguments.repair else Store(root)
    with meter(quiet=arguments.json or arguments.quiet) as on_bytes:
        found = findings(loaded, store, arguments, on_bytes)
    if arguments.json:
        print(json.dumps([one._asdict() for one in found], indent=2))
    else:
        show(found, quiet=arguments.quiet)
    bad = [one for one in found if one.problem and one.kind != LEFTOVER and not repaired(one)]
    return EXIT_SITE if bad else 0


def findings(
    loaded: Config, store: Store, arguments: argparse.Namespace, on_bytes: OnBytes
) -> List[Finding]:
    """Check the images that are named, or all and the references, too."""
    again = puller(loaded, store) if arguments.repair else None
    if arguments.images:
        digests = [digest_of_name(loaded, store, name) for name in arguments.images]
        return list(verify(store, digests, again, on_bytes))
    found = list(verify(store, store.digests(), again, on_bytes))
    if os.path.isdir(store.refs_directory):
        found += verify_links(store, repair=arguments.repair)
    if os.access(store.images_directory, os.W_OK):
        found += verify_rest(store, repair=arguments.repair)
    return found


def verify_rest(store: Store, *, repair: bool) -> Iterator[Finding]:
    """What killed pulls and removals left: no damage, for nobody sees it, but in the way."""
    for item in unfinished(store):
        done = "removed" if repair and item.remove() else ""
        yield Finding(LEFTOVER, item.name, item.reason, done)


def puller(loaded: Config, store: Store) -> PullAgain:
    """What pulls a damaged image again: as the site, for everyone."""
    options = options_from(loaded.settings)
    return lambda text: pull(text, store, options)


def repaired(one: Finding) -> bool:
    """Whether nothing is left to do about it."""
    return one.repair.startswith("pulled again") or (one.kind == "reference" and bool(one.repair))


def show(found: List[Finding], *, quiet: bool) -> None:
    """A line for each that is damaged, and, unless quiet, one for the rest."""
    told = [sentence(one) for one in found if one.problem]
    rest = [] if quiet else summary(found)
    for line in told + rest:
        print(line)


def summary(found: List[Finding]) -> List[str]:
    """What is well, in one line."""
    if not found:
        return ["there is no image to verify"]
    well = [one.kind for one in found if not one.problem]
    counted = [count(well.count(kind), kind) for kind in ("image", "reference") if kind in well]
    verb = "is" if len(well) == 1 else "are"
    return [f"{' and '.join(counted)} {verb} well"] if well else []


def sentence(one: Finding) -> str:
    """What is wrong with something, and what was done."""
    done = f"; {one.repair}" if one.repair else ""
    return f"{one.kind} {one.name}: {one.problem}{done}"
