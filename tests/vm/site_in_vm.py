"""Runs in the virtual machine: hpcwrap's command, its settings, and images made of programs.

site_in_vm.py set-up | site_in_vm.py image NAME WITHOUT [PROGRAM...]
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Sequence

sys.path.insert(0, "/hpcwrap")

from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_image, publish_link
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.store import Store
from hpcwrap.image.workspace import ensure_store

STORE = "/var/lib/hpcwrap"
SITE = Path("/etc/hpcwrap")
COMMAND = '#!/bin/sh\nPYTHONPATH=/hpcwrap exec python3 -m hpcwrap "$@"\n'
CONFIG = {"Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/", "Labels": {}, "Cmd": None}


def set_up() -> None:
    """Put the command on the PATH, and settings that pull nothing."""
    command = Path("/usr/local/bin/hpcwrap")
    command.write_text(COMMAND)
    command.chmod(0o755)
    (SITE / "environments.d").mkdir(parents=True, exist_ok=True)
    (SITE / "hpcwrap.yaml").write_text("pull: never\nmount_home: false\n")
    # Loaded as containers need them, udev does it elsewhere.
    subprocess.run(["modprobe", "loop"], check=True)


def add_image(name: str, without: Sequence[str], programs: Sequence[str]) -> None:
    """Publish an image; the reference is its name."""
    store = Store(STORE)
    ensure_store(store)
    made = os.path.join(store.tmp_directory, "made")
    tree = Path("/tmp/image") / name
    make_tree(tree, programs)
    for library in without:
        for path in tree.rglob(f"{library}*"):
            path.unlink()
    squash = ["mksquashfs", str(tree), made, "-quiet", "-no-progress", "-all-root", "-comp", "lz4"]
    subprocess.run(squash, check=True)
    shutil.rmtree(tree)
    digest = digest_of(Path(made).read_bytes())
    publish_image(store, digest, made, {"reference": name, "config": CONFIG, "pulled": 0})
    publish_link(store, parse_reference(name), digest)


def make_tree(tree: Path, programs: Sequence[str]) -> None:
    """Busybox under all its names, and the programs with what the loader loads for them."""
    (tree / "bin").mkdir(parents=True)
    (tree / "etc").mkdir()
    for directory in ("lib", "lib64", "sbin"):
        (tree / directory).symlink_to(f"usr/{directory}")
        (tree / "usr" / directory).mkdir(parents=True)
    (tree / "etc/os-release").write_text("PRETTY_NAME='made in the machine'\n")
    shutil.copy("/bin/busybox", tree / "bin")
    names = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    for name in set(names.stdout.split()) - {"busybox"}:
        (tree / "bin" / name).symlink_to("busybox")
    for program in programs:
        copy(program, tree)
        for library in libraries(program):
            copy(library, tree)


def libraries(program: str) -> List[str]:
    """Shared libraries of a program, as ldd(1) prints them."""
    if os.path.isdir(program):
        found = [str(path) for path in Path(program).glob("*.so*")]
        return found + [library for path in found for library in libraries(path)]
    lines = subprocess.run(["ldd", program], capture_output=True, text=True).stdout.splitlines()
    return [word for line in lines for word in line.split() if word.startswith("/")]


def copy(path: str, tree: Path) -> None:
    """Copy a file or directory to the same place below `tree`."""
    target = tree / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    if os.path.isdir(path):
        shutil.copytree(path, target, symlinks=False)
    else:
        shutil.copy(path, target)


if __name__ == "__main__":
    if sys.argv[1] == "set-up":
        set_up()
    else:
        add_image(sys.argv[2], sys.argv[3].split(), sys.argv[4:])
