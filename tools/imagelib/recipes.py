"""The two images: which packages, files and settings, layer by layer."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Mapping, NamedTuple

from imagelib import debian
from imagelib.commands import run
from imagelib.layers import (
    Entry,
    difference,
    directory_entry,
    file_entry,
    link_entry,
    opaque_entry,
    read_entries,
    whiteout_entry,
)
from imagelib.oci import Layer

HERE = os.path.dirname(os.path.realpath(__file__))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BASE_PACKAGES = ("ca-certificates", "procps", "python3-minimal")
MPI_PACKAGES = ("openmpi-bin", "libopenmpi-dev", "gcc", "libc6-dev")
PROGRAMS = ("mpi-hello", "mpi-pingpong")

WHERE_SCRIPT = """\
#!/bin/sh
# Says where it runs: found only if the image's own PATH is in force.
. /etc/os-release
echo "$PRETTY_NAME, image $(cat /etc/demo-image), on $(uname -n) in $PWD as $(id -un)"
"""


class Recipe(NamedTuple):
    """One image: how its layers come about, in an empty work directory, and its settings."""

    name: str
    make_layers: Callable[[str], list[Layer]]
    settings: Mapping[str, Any]


def debian_layers(work: str) -> list[Layer]:
    """Debian, Open MPI, and what a site would add: programs, a changed file, removed ones."""
    base, whole = os.path.join(work, "base.tar"), os.path.join(work, "whole.tar")
    with ThreadPoolExecutor() as pool:
        for made in (
            pool.submit(debian.bootstrap, BASE_PACKAGES, base),
            pool.submit(debian.bootstrap, (*BASE_PACKAGES, *MPI_PACKAGES), whole),
        ):
            made.result()
    below, above = read_entries(base), read_entries(whole)
    return [
        Layer(below, f"Debian {debian.SUITE}: {' '.join(BASE_PACKAGES)}"),
        Layer(difference(below, above), f"Open MPI: {' '.join(MPI_PACKAGES)}"),
        Layer(site_entries(compile_programs(whole, work)), "demo programs; no documentation"),
    ]


def site_entries(programs: Mapping[str, bytes]) -> list[Entry]:
    """The third layer; it holds every kind of change: add, replace, remove, hide."""
    return [
        file_entry("etc/demo-image", b"debian-12\n"),
        file_entry("etc/motd", b"This is the demo image of hpcwrap.\n"),
        directory_entry("opt/demo"),
        directory_entry("opt/demo/bin"),
        file_entry("opt/demo/bin/where-am-i", WHERE_SCRIPT.encode(), 0o755),
        *(file_entry(f"usr/local/bin/{name}", body, 0o755) for name, body in programs.items()),
        whiteout_entry("usr/share/doc"),
        directory_entry("usr/share/lintian"),
        opaque_entry("usr/share/lintian"),
        file_entry("usr/share/lintian/README", b"Nothing here is needed to run programs.\n"),
    ]


def compile_programs(tar: str, work: str) -> dict[str, bytes]:
    """Compile the MPI programs inside the image's own root; name → program."""
    root = os.path.join(work, "root")
    os.mkdir(root)
    run(["tar", "--extract", f"--file={tar}", f"--directory={root}"])
    compiled = {}
    for name in PROGRAMS:
        with open(os.path.join(HERE, "programs", f"{name}.c"), "rb") as file:
            source = file.read()
        with open(f"{root}/tmp/{name}.c", "wb") as file:
            file.write(source)
        flags = ["-O2", "-s", "-Wall", "-Werror"]
        run(["chroot", root, "mpicc", *flags, "-o", f"/tmp/{name}", f"/tmp/{name}.c"])
        with open(f"{root}/tmp/{name}", "rb") as file:
            compiled[name] = file.read()
    return compiled


def busybox_layers(work: str) -> list[Layer]:
    """One static program under all its names; then a layer that adds, replaces and removes."""
    debian.unpack_package("busybox-static", work)
    program = os.path.join(work, "bin", "busybox")
    with open(program, "rb") as file:
        body = file.read()
    names = sorted(set(run([program, "--list"]).split()) - {"busybox", "sh"})
    base = [
        directory_entry("bin"),
        file_entry("bin/busybox", body, 0o755),
        link_entry("bin/sh", "bin/busybox", hard=True),
        *(link_entry(f"bin/{name}", "busybox") for name in names),
        directory_entry("etc"),
        file_entry("etc/group", b"root:x:0:\n"),
        file_entry("etc/motd", b"to be removed\n"),
        file_entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        directory_entry("root", 0o700),
        directory_entry("tmp", 0o1777),
    ]
    top = [
        whiteout_entry("etc/motd"),
        file_entry("etc/demo-image", b"busybox-1\n"),
        file_entry("etc/group", b"root:x:0:\nnogroup:x:65534:\n"),
    ]
    return [Layer(base, "busybox-static"), Layer(top, "names, no message of the day")]


def settings(name: str, title: str, path: str, workdir: str, shell: str) -> dict[str, Any]:
    """The image's config, in the words of the OCI image specification."""
    return {
        "Env": [f"PATH={path}", "DEMO_IMAGE=yes"],
        "WorkingDir": workdir,
        "Cmd": [shell],
        "Labels": {
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.description": title,
        },
    }


DEBIAN_12 = Recipe(
    "debian-12",
    debian_layers,
    settings(
        "debian-12", "Debian 12 with Open MPI", f"/opt/demo/bin:{SYSTEM_PATH}", "/opt/demo", "bash"
    ),
)
BUSYBOX_1 = Recipe(
    "busybox-1", busybox_layers, settings("busybox-1", "Busybox alone", "/bin", "/", "sh")
)
RECIPES = {recipe.name: recipe for recipe in (DEBIAN_12, BUSYBOX_1)}
