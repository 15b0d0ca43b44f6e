"""hpcwrap image import: take an image from an archive into the store, under its own name."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress

from hpcwrap.config import Config, load_config
from hpcwrap.image.allow import check_source
from hpcwrap.image.digest import hex_digits
from hpcwrap.image.exchange import name_in
from hpcwrap.image.publish import change_document, publish_link
from hpcwrap.image.pull import Pulled, pull
from hpcwrap.image.puller import find_identity, options_from
from hpcwrap.image.rights import as_user
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Image, Store, file_name, parse_key
from hpcwrap.image.workspace import locked
from hpcwrap.verbs import tables
from hpcwrap.verbs.pull import document, reference_of, tell
from hpcwrap.verbs.pullview import view

LOCK_SECONDS = 10.0
READ_SECONDS = 60.0

EPILOG = """\
Nothing of the file is mounted: its layers are converted like a registry's.
Everyone may use the image.  Jobs find it by its name, also where the site
reaches no registry (`pull: never`).  Without NAME that is what the file says,
also if another image has it until now: say NAME for a file that others gave you.

examples:
  hpcwrap image import debian-12.tar                  under the name in the file
  hpcwrap image import tool.tar debian-12             as an environment's image
  hpcwrap image import tool.tar site.example/tool:1   under a name of your own
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this action."""
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", help="an OCI archive, as `image export` makes")
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="an environment or a reference to keep it as; default: the name in the file",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Convert the archive's image and name it."""
    loaded = load_config(arguments.config)
    store = Store(loaded.settings.store)
    path = os.path.abspath(arguments.file)
    text = reference_of(loaded, arguments.name) if arguments.name else own_name(loaded, path)
    name = parse_key(text)[0]
    source = f"oci-archive:{path}"
    # The site's list of allowed images is for names, and the name of this one is not its file's.
    check_source(parse_source(name), loaded.settings.allow_images)
    options = options_from(loaded.settings)._replace(allow_images=())
    with view(quiet=arguments.quiet or arguments.json) as report:
        pulled = pull(source, store, options, report)
    done = Pulled(rename(store, source, name, pulled), pulled.new, pulled.milliseconds)
    tables.renew(arguments.config)
    if arguments.json:
        print(json.dumps(document(done), indent=2))
    elif not arguments.quiet:
        tell(done)
    return 0


def own_name(loaded: Config, path: str) -> str:
    """The name in the file, which the image user reads: it is of strangers, as all of an image."""
    identity = find_identity(loaded.settings.image_user)
    found = as_user(identity, lambda: {"name": name_in(path)}, READ_SECONDS, f"cannot read {path}")
    return str(found["name"])


def rename(store: Store, source: str, name: str, pulled: Pulled) -> Image:
    """Give an image that came from a file its own name; the image under it."""
    digest, own = pulled.image.digest, str(parse_source(source))
    locks = [f"ref-{file_name(name)}", f"image-{hex_digits(digest)}"]
    with locked(store, locks[0], LOCK_SECONDS), locked(store, locks[1], LOCK_SECONDS):
        if pulled.new:
            change_document(store, digest, {"reference": name})
        publish_link(store, name, digest)
    with suppress(FileNotFoundError):
        os.unlink(store.ref_path(own))
    return store.read_image(digest, name)
