"""The verbs of `tools/image`, and the one place where its errors become exit codes."""

from __future__ import annotations

import argparse
import os
import time
from typing import Sequence

from clusterlib.edge import run_verb, tool_parser
from clusterlib.errors import ToolError
from clusterlib.layout import CONTROLLER, DEFAULT_STATE, REGISTRY_PORT, address
from clusterlib.processes import node_pid

from imagelib import cache
from imagelib.commands import run
from imagelib.libcs import LIBCS
from imagelib.mpirun import MPIRUN_12
from imagelib.recipes import BUSYBOX_1, DEBIAN_12, RECIPES, Recipe
from imagelib.suites import SUITES
from imagelib.synthetic import SYNTHETIC

EPILOG = """\
The images: debian-12 (Debian 12 with Open MPI, three layers) and busybox-1 (two tiny layers), both
made from Debian packages of the mirror that this machine's apt uses; mpirun-12 (Open MPI, MPICH,
OpenSSH, numpy); openmpi-13 and mpich-12 (one MPI, of Debian 13 and 12); musl-1 and
sid-1 (busybox with musl; a shell with Debian's newest glibc); and synthetic
(3 GiB in 20 layers, made of nothing, for the benchmarks).  For example:

  tools/image build                        debian-12, unless it is in the cache
  tools/image push debian-12               to registry:5000/debian-12:latest in the cluster
  tools/image push busybox-1 test/tiny:v2  to another repository and tag
  skopeo inspect oci:$(tools/image path debian-12)
"""

OTHERS = {recipe.name: recipe for recipe in (MPIRUN_12, SYNTHETIC)}
IMAGES = {**RECIPES, **SUITES, **LIBCS, **OTHERS}


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    return run_verb(make_parser(), argv, "make images")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--cache", metavar="DIR", default=cache.DEFAULT_CACHE)
    parser = tool_parser("image", "Makes the images of the demo and the tests.", EPILOG)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb, text in (
        ("build", build, "build an image, unless it is in the cache"),
        ("path", path, "print where the image's OCI layout is"),
        ("push", push, "push an image to the cluster's registry, built if need be"),
    ):
        one = verbs.add_parser(name, parents=[shared], help=text)
        one.add_argument(
            "image",
            nargs="?",
            type=known_image,
            default=DEBIAN_12,
            metavar="IMAGE",
            help="default: debian-12",
        )
        one.set_defaults(verb=verb)
        if verb is push:
            add_push_options(one)
    tiny = verbs.add_parser("tiny", parents=[shared], help="the same as build busybox-1")
    tiny.set_defaults(verb=build, image=BUSYBOX_1)
    return parser


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Where to push."""
    parser.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="default: IMAGE:latest")
    state = os.environ.get("HPCWRAP_CLUSTER") or DEFAULT_STATE
    parser.add_argument("--state", metavar="DIR", default=state, help="the cluster's")


def known_image(text: str) -> Recipe:
    """An image, from the command line."""
    if text not in IMAGES:
        raise argparse.ArgumentTypeError(f"there is no image {text}, only {', '.join(IMAGES)}")
    return IMAGES[text]


def build(options: argparse.Namespace) -> int:
    """`build`: see that the layout is there."""
    say_and_build(options)
    return 0


def say_and_build(options: argparse.Namespace) -> None:
    """Build, and say so: it may take a minute."""
    before = time.monotonic()
    if not cache.is_built(options.cache, options.image):
        print(f"Building the image {options.image.name} …", flush=True)
    if cache.ensure_built(options.cache, options.image):
        seconds = time.monotonic() - before
        print(f"Built in {seconds:.1f} s: {cache.layout_path(options.cache, options.image)}")
    else:
        print(f"The image {options.image.name} is in the cache.")


def path(options: argparse.Namespace) -> int:
    """`path`: where the layout is."""
    if not cache.is_built(options.cache, options.image):
        name = options.image.name
        raise ToolError(f"cannot find the image {name}: build it first (tools/image build {name})")
    print(cache.layout_path(options.cache, options.image))
    return 0


def push(options: argparse.Namespace) -> int:
    """`push`: copy the layout to the registry.

    With this machine's files but in ctl's network: what is new in the cache need not be visible
    through the overlay of a node that was there before.
    """
    pid = node_pid(os.path.realpath(options.state), CONTROLLER)
    say_and_build(options)
    name = options.name or options.image.name
    name = name if ":" in name else f"{name}:latest"
    before = time.monotonic()
    into = ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    source = f"oci:{cache.layout_path(options.cache, options.image)}"
    run(
        [*into, *copy, source, f"docker://{address(CONTROLLER)}:{REGISTRY_PORT}/{name}"],
        name="skopeo",
    )
    print(f"Pushed to registry:{REGISTRY_PORT}/{name} in {time.monotonic() - before:.1f} s.")
    return 0
