"""Root file systems of other suites: made once by mmdebstrap, kept in the cache of tools/image."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from typing import Sequence

from clusterlib.processes import lower_roots

NODE = (
    *("docker-registry", "skopeo", "squashfs-tools", "isal", "pigz", "zstd"),
    *("ca-certificates", "procps", "passwd", "python3", "python3-venv", "util-linux", "iproute2"),
    *("hostname", "openssh-client", "openssh-server", "make", "gcc", "libc6-dev"),
)
"""What every node needs, whatever its scheduler: for hpcwrap, for tests, and the registry."""

# Debian's archive signs lists of sid for a week; a mirror that stands still is no danger to tests.
UNDATED = '--aptopt=Acquire::Check-Valid-Until "false"'


def ensure(name: str, suite: str, packages: Sequence[str]) -> str:
    """The path of a tree with these packages and all that they need; made unless it is there.

    Its name has a digest of what it is made of, and it is published by rename.
    """
    # Not at the top: process 1 of a node imports this module too, and needs none of them.
    from imagelib import cache, debian
    from imagelib.suites import mirror

    source = f"deb {mirror()} {suite} main"
    digest = hashlib.sha256("\n".join([source, *debian.sources(), *packages]).encode()).hexdigest()
    path = os.path.join(cache.DEFAULT_CACHE, f"{name}-{digest[: cache.KEY_LENGTH]}")
    os.makedirs(cache.DEFAULT_CACHE, 0o755, exist_ok=True)
    with cache.locked(cache.DEFAULT_CACHE):
        if not os.path.isdir(path):
            for older in unused(cache.DEFAULT_CACHE, name):
                shutil.rmtree(older)
            make(path, suite, packages, source)
    return path


def unused(directory: str, name: str) -> list[str]:
    """Trees of this name, of whatever packages, but for those that running nodes are over."""
    return sorted(set(glob.glob(f"{directory}/{name}-*")) - lower_roots())


def make(path: str, suite: str, packages: Sequence[str], source: str) -> None:
    """Make the tree beside its place and rename it; without documentation, half of it."""
    from imagelib.commands import run

    work = f"{path}.work"
    shutil.rmtree(work, ignore_errors=True)
    include = f"--include={','.join(packages)}"
    smaller = "--dpkgopt=path-exclude=/usr/share/doc/*"
    words = ["--mode=root", "--variant=minbase", smaller, UNDATED, include]
    run(["mmdebstrap", *words, suite, work, source])
    os.rename(work, path)
