"""hpcwrap pull: fetch an image and make its squashfs, ready to start."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Dict, Tuple

from hpcwrap import log
from hpcwrap.config import Config, load_config
from hpcwrap.hints import closest
from hpcwrap.human import format_seconds, format_size, format_stages
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.pull import Pulled, pull
from hpcwrap.image.puller import PullOptions, options_from
from hpcwrap.image.store import Store
from hpcwrap.job import find_user
from hpcwrap.verbs import tables
from hpcwrap.verbs.pullview import can_draw, view

EPILOG = """\
Pulled and converted once, for all nodes that share the store; what is there
already is not pulled again.  Files are named by their full path.

examples:
  hpcwrap pull debian-12                          an environment's image
  hpcwrap pull ubuntu:24.04                       from Docker Hub
  hpcwrap pull registry.example:5000/team/tool:1  from another registry
  hpcwrap pull /data/tool.sif                     SIF, squashfs, tar, archives
  hpcwrap pull /data/rootfs                       a directory with a root file system
  hpcwrap pull oci:/data/layout:tag               an OCI layout
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "image",
        metavar="NAME|REFERENCE|PATH",
        help="an environment, [registry[:port]/]repository[:tag][@digest], a file or a directory",
    )
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="do not ask the registry whether the tag moved if the store knows the reference",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Pull, and say what came of it."""
    loaded = load_config(arguments.config)
    store = Store(loaded.settings.store)
    text = reference_of(loaded, arguments.image)
    known = store.find(text) if arguments.if_missing else None
    if known is not None:
        pulled = Pulled(known, new=False, milliseconds={})
    else:
        with view(quiet=arguments.quiet or arguments.json) as report:
            pulled = pull(text, store, options_for(loaded, arguments.image), report)
        tables.renew(arguments.config)
    if arguments.json:
        print(json.dumps(document(pulled), indent=2))
    elif not arguments.quiet:
        tell(pulled)
    return 0


def options_for(loaded: Config, name: str) -> PullOptions:
    """The options of a pull for whoever calls: the site, or a user with a store of his own."""
    user = None if os.geteuid() == 0 else find_user(str(os.geteuid()))
    return options_from(loaded.settings, user, named_by_user=name not in loaded.environments)


def reference_of(loaded: Config, name: str) -> str:
    """The reference of an environment of that name, else the name as a reference."""
    known = [*loaded.environments, *loaded.broken]
    if name in known:
        return loaded.environment(name).image
    near = closest(name, known, otherwise="")
    if near:
        log.warn(f"there is no environment {name} ({near}); taking it for a reference")
    if os.path.exists(name) and not os.path.isabs(name):
        log.warn(f"taking {name} for a reference; the file here is {os.path.abspath(name)}")
    return name


def tell(pulled: Pulled) -> None:
    """The result in one line, on a terminal in two."""
    sentence, details = sentences(pulled)
    if not can_draw(sys.stdout):
        print(f"{sentence}: {details}")
        return
    from hpcwrap.verbs.pullscreen import show

    show(sentence, details)


def sentences(pulled: Pulled) -> Tuple[str, str]:
    """The result, and what is to be known of it."""
    image = pulled.image
    what = f"{hex_digits(image.digest)[:12]}, {format_size(image.size)}"
    if not pulled.new:
        return f"{image.reference} is in the store", what
    taken = format_seconds(sum(pulled.milliseconds.values()))
    stages = format_stages(pulled.milliseconds)
    return f"{image.reference} is ready after {taken}", what + (f" ({stages})" if stages else "")


def document(pulled: Pulled) -> Dict[str, object]:
    """The result for a program."""
    image = pulled.image
    return {
        "reference": image.reference,
        "digest": image.digest,
        "squashfs": image.squashfs,
        "size": image.size,
        "new": pulled.new,
        "milliseconds": pulled.milliseconds,
    }
