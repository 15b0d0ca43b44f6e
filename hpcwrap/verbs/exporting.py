"""hpcwrap image export: write an image into a file that other programs load, too."""

from __future__ import annotations

import argparse
import json
import os

from hpcwrap.config import load_config
from hpcwrap.errors import UserError
from hpcwrap.human import format_size
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.exchange import export
from hpcwrap.image.store import Store
from hpcwrap.verbs.images import digest_of_name
from hpcwrap.verbs.meter import meter

EPILOG = """\
The file is an OCI archive with one layer: `hpcwrap image import FILE` takes it at another site,
as do `podman load -i FILE`, `docker load -i FILE` and `skopeo copy oci-archive:FILE …`.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this action."""
    parser.epilog = EPILOG
    parser.add_argument("image", metavar="IMAGE", help="an environment, a reference or a digest")
    parser.add_argument("file", metavar="FILE", help="the file to make; it must not exist")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Export one image."""
    loaded = load_config(arguments.config)
    store = Store(loaded.settings.store)
    digest = digest_of_name(loaded, store, arguments.image)
    image = store.find_digest(digest)
    if image is None:
        raise UserError(
            f"cannot read the image {arguments.image}", "is it private, or damaged? become root"
        )
    path = os.path.abspath(arguments.file)
    with meter(quiet=arguments.json) as on_bytes:
        made = export(store, image, path, lambda done: on_bytes(image.reference, done, 0))
    if arguments.json:
        print(json.dumps({**made._asdict(), "file": path, "image": image.digest}, indent=2))
    else:
        short = hex_digits(image.digest)[:12]
        print(f"{image.reference} ({short}) is in {path}: {format_size(made.size)}")
    return 0
