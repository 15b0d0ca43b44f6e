"""Debian: this machine's mirrors, root file systems made by mmdebstrap, single packages."""

from __future__ import annotations

import os
from typing import Sequence

from clusterlib.errors import ToolError

from imagelib.commands import run

SUITE = "bookworm"


def architecture() -> str:
    """Debian's name of this machine's architecture, which for common ones is Go's and OCI's too."""
    return run(["dpkg", "--print-architecture"]).strip()


def sources() -> list[str]:
    """Lines of sources.list for the image's suite, with the mirrors of this machine's apt."""
    fields = run(
        [
            "apt-get",
            "indextargets",
            "--format=$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ]
    )
    targets = [line.split() for line in fields.splitlines()]
    debian = [target[1:] for target in targets if len(target) == 4 and target[0] == "Debian"]
    lines = [" ".join(["deb", *target]) for target in debian if is_of_suite(target[1])]
    if lines:
        return sorted(set(lines))
    main = [target for target in debian if "-" not in target[1] and target[2] == "main"]
    if not main:
        raise ToolError(
            "cannot find a Debian mirror: apt has no package lists (run apt-get update)"
        )
    return [f"deb {main[0][0]} {SUITE} main"]


def is_of_suite(release: str) -> bool:
    """Whether a release is the image's suite, or its updates or security fixes."""
    return release == SUITE or release.startswith(SUITE + "-")


def bootstrap(packages: Sequence[str], tar: str) -> None:
    """Make a root file system of essential packages and `packages`, with dependencies, as a tar."""
    run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            SUITE,
            tar,
            *sources(),
        ]
    )


def unpack_package(name: str, directory: str) -> None:
    """Download one package from the mirror and unpack its files into `directory`."""
    # apt-get downloads as user _apt where it may; here the directory is root's, which it says.
    run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name], cwd=directory)
    for file in os.listdir(directory):
        if file.endswith(".deb"):
            run(["dpkg-deb", "--extract", file, directory], cwd=directory)
            os.unlink(os.path.join(directory, file))
