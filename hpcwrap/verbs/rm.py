"""hpcwrap rm: take images out of the store."""

from __future__ import annotations

import argparse

from hpcwrap.config import load_config
from hpcwrap.image.remove import Removed, remove
from hpcwrap.image.store import Store

EPILOG = """\
Refused while a job of any node uses the image.  Where several references have one image, it
goes with the last of them; a digest takes all of them.

examples:
  hpcwrap rm debian-12          an environment's image
  hpcwrap rm ubuntu:24.04       a reference, as `hpcwrap images` shows it
  hpcwrap rm 0d0baca6673c       an image, whatever it is called
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="an environment, a reference, a digest or at least 6 of its hex digits",
    )


def run(arguments: argparse.Namespace) -> int:
    """Remove one after the other; the first that cannot be removed ends it."""
    loaded = load_config(arguments.config)
    store = Store(loaded.settings.store)
    for name in arguments.images:
        environment = loaded.environments.get(name)
        print(_sentence(remove(store, environment.image if environment else name)))
    return 0


def _sentence(removed: Removed) -> str:
    names = ", ".join(removed.references)
    if removed.kept_for:
        return f"removed {names}; its image stays for {', '.join(removed.kept_for)}"
    return f"removed {removed.digest}" + (f" ({names})" if names else "")
