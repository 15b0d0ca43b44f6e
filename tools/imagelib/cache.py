"""Built layouts, each under the digest of all that goes into it."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import Iterator

from imagelib import debian, oci
from imagelib.recipes import HERE, Recipe

DEFAULT_CACHE = "/var/cache/hpcwrap-tools"
KEY_LENGTH = 12
INPUTS = ("commands", "debian", "layers", "oci", "recipes")


def layout_path(cache: str, recipe: Recipe) -> str:
    """Where the image's layout is, or will be once it is built."""
    return os.path.join(cache, f"{recipe.name}-{key(recipe)}")


def is_built(cache: str, recipe: Recipe) -> bool:
    """Whether the layout is there; it is published by rename, so it is whole then."""
    return os.path.isdir(layout_path(cache, recipe))


def ensure_built(cache: str, recipe: Recipe) -> bool:
    """Build the image unless it is there; whether it had to be built."""
    os.makedirs(cache, 0o755, exist_ok=True)
    with locked(cache):
        if is_built(cache, recipe):
            return False
        remove_older(cache, recipe)
        build(cache, recipe)
    return True


def build(cache: str, recipe: Recipe) -> None:
    """Build in a work directory of the cache and publish the layout from there."""
    with tempfile.TemporaryDirectory(prefix="work-", dir=cache) as work:
        parts, layout = os.path.join(work, "parts"), os.path.join(work, "layout")
        os.mkdir(parts)
        os.mkdir(layout)
        layers = recipe.make_layers(parts)
        oci.write_layout(layout, layers, recipe.settings, debian.architecture())
        os.rename(layout, layout_path(cache, recipe))


def remove_older(cache: str, recipe: Recipe) -> None:
    """Remove layouts made from other inputs, and work that a killed build has left."""
    for path in glob.glob(f"{cache}/{recipe.name}-*") + glob.glob(f"{cache}/work-*"):
        shutil.rmtree(path)


def key(recipe: Recipe) -> str:
    """The digest of what makes an image here, its own module too, and of the mirrors."""
    whole = hashlib.sha256("\n".join(debian.sources()).encode())
    own = recipe.make_layers.__module__.rpartition(".")[2]
    modules = [f"{HERE}/{name}.py" for name in sorted({*INPUTS, own})]
    for path in [*modules, *sorted(glob.glob(f"{HERE}/programs/*.c"))]:
        with open(path, "rb") as file:
            whole.update(file.read())
    return whole.hexdigest()[:KEY_LENGTH]


@contextmanager
def locked(cache: str) -> Iterator[None]:
    """One build at a time; whoever waited finds it built."""
    fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
