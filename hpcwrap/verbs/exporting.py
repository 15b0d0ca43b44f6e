"""hpcwrap image export: write an image into a file that other programs load, too."""

from __future__ import annotations

import argparse
import json
import os

from hpcwrap.config import Config, load_config
from hpcwrap.errors import UserError
from hpcwrap.human import format_size
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.exchange import export
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Image, Store
from hpcwrap.verbs.images import digest_of_name
from hpcwrap.verbs.meter import meter

EPILOG = """\
The file is an OCI archive with one layer: `hpcwrap image import FILE` takes it
at another site, as do `podman load -i FILE`, `docker load -i FILE` and
`skopeo copy oci-archive:FILE …`.

example:
  hpcwrap image export debian-12 /scratch/debian-12.tar
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
    image = image._replace(reference=name_for(loaded, store, arguments.image, image))
    path = os.path.abspath(arguments.file)
    with meter(quiet=arguments.json) as on_bytes:
        made = export(store, image, path, lambda done: on_bytes(image.reference, done, 0))
    if arguments.json:
        print(json.dumps({**made._asdict(), "file": path, "image": image.digest}, indent=2))
    else:
        short = hex_digits(image.digest)[:12]
        print(f"{image.reference} ({short}) is in {path}: {format_size(made.size)}")
    return 0


def name_for(loaded: Config, store: Store, name: str, image: Image) -> str:
    """The name that the file gives the image: a tag of a registry's, wherever it has one.

    That by which it was asked for, else one that the store knows it by: whoever pulled it first
    may have called it by a path or by its digest.
    """
    environment = loaded.environments.get(name)
    known = [x.reference for x in store.links()[0] if x.digest == image.digest and x.owner is None]
    asked = str(parse_source(environment.image if environment else name))
    texts = [*([asked] if asked in known else []), image.reference, *sorted(known)]
    return next((text for text in texts if has_tag(text)), image.reference)


def has_tag(text: str) -> bool:
    """Whether a source is a registry's, with a tag."""
    reference = parse_source(text).reference
    return reference is not None and reference.tag is not None
