"""A large image for the benchmarks, made of nothing: 3 GiB, 20 layers, 100 000 files, one seed.

What it has in common with real images: a few large files and very many small ones (log-normal
sizes, median 3.5 KB), contents that gzip makes a third of, a heavy lowest layer, and upper layers
that replace and remove some of what is below.
"""

from __future__ import annotations

import os
import random
import tarfile
from itertools import accumulate
from typing import Iterator

from imagelib.layers import (
    Entry,
    directory_entry,
    link_entry,
    make_header,
    whiteout_entry,
)
from imagelib.oci import Layer
from imagelib.recipes import Recipe, settings

SEED = 3
LAYERS = 20
FILES = 100_000
BYTES = 3 << 30
LOWEST_SHARE = 0.3
"""How much of everything the lowest layer has; the rest is drawn."""

PER_DIRECTORY = 16
SIGMA = 2.1
LARGEST = 48 << 20
REPLACED, REMOVED = 0.02, 0.005
"""Of an upper layer's files: how many have the name of an older one, and how many remove one."""

POOL = 64 << 20
BLOCK = 64 << 10
WORDS = 1000
RANDOM_BLOCKS = 0.1
"""How much of the pool nothing can compress: what is compressed already, keys, tables."""


def synthetic_layers(work: str) -> list[Layer]:
    """The layers; their files' bodies are pieces of one pool, written into `work`."""
    chance = random.Random(SEED)
    pool = os.path.join(work, "pool")
    write_pool(pool, chance)
    known: list[str] = []
    layers = []
    for number, sizes in enumerate(draw_sizes(chance)):
        entries = list(draw_layer(number, sizes, known, pool, chance))
        below = set(known)
        known += [entry.name for entry in entries if entry.header.size and entry.name not in below]
        layers.append(Layer(entries, f"layer {number} of {LAYERS}: {len(sizes)} files"))
    return layers


def write_pool(path: str, chance: random.Random) -> None:
    """Words of a made-up language, the first ones most frequent, and blocks of noise."""
    words = [chance.randbytes(chance.randint(3, 14)) for _ in range(WORDS)]
    weights = list(accumulate(1 / (rank + 2) ** 1.3 for rank in range(len(words))))
    with open(path, "wb") as file:
        while file.tell() < POOL:
            if chance.random() < RANDOM_BLOCKS:
                file.write(chance.randbytes(BLOCK))
            else:
                some = chance.choices(words, cum_weights=weights, k=BLOCK // 6)
                file.write(b" ".join(some)[:BLOCK])


def draw_sizes(chance: random.Random) -> Iterator[list[int]]:
    """Sizes of the files of each layer; all of them are FILES files and about BYTES bytes."""
    drawn = [chance.lognormvariate(0, SIGMA) for _ in range(FILES)]
    scale = BYTES / sum(drawn)
    sizes = [min(round(size * scale), LARGEST) for size in drawn]
    shares = [chance.expovariate(1) for _ in range(LAYERS - 1)]
    rest = (1 - LOWEST_SHARE) / sum(shares)
    ends = accumulate([LOWEST_SHARE, *(share * rest for share in shares)])
    start = 0
    for end in (round(FILES * end) for end in ends):
        yield sizes[start:end]
        start = end


def draw_layer(
    number: int, sizes: list[int], known: list[str], pool: str, chance: random.Random
) -> Iterator[Entry]:
    """Directories, files, some links; in upper layers some names that are known, and whiteouts."""
    top = f"opt/part-{number:02}"
    yield directory_entry("opt")
    yield directory_entry(top)
    # No name twice: podman refuses a layer where one is.
    older = chance.sample(known, min(len(known), round((REPLACED + REMOVED) * len(sizes))))
    gone = [older.pop() for _ in range(round(len(older) * REMOVED / (REPLACED + REMOVED)))]
    directory = top
    for count, size in enumerate(sizes):
        if count % PER_DIRECTORY == 0:
            directory = f"{top}/{chance.randbytes(4).hex()}"
            yield directory_entry(directory)
            yield link_entry(f"{directory}/latest", f"file-{count}")
        name = older.pop() if older else f"{directory}/file-{count}"
        yield pool_entry(name, size, pool, chance)
    yield from (whiteout_entry(name) for name in gone)


def pool_entry(name: str, size: int, pool: str, chance: random.Random) -> Entry:
    """A file whose body is a piece of the pool, from wherever."""
    header = make_header(name, tarfile.REGTYPE, 0o755 if chance.random() < 0.1 else 0o644)
    header.size = size
    header.offset_data = chance.randrange(POOL - LARGEST)
    return Entry(header, tar=pool)


SYNTHETIC = Recipe(
    "synthetic", synthetic_layers, settings("synthetic", "A large image", "/bin", "/", "sh")
)
