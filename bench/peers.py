"""The programs that others pull images with, each into a new directory.

Not where another was just removed: ext4 steps over the inodes of files that were removed in the
last half minute, one by one, which would cost whoever unpacks seconds.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
from typing import Dict, List, NamedTuple

from bench import place
from bench.processes import REPOSITORY, BenchError, progress, run

CACHE = "/var/cache/hpcwrap-tools"
SID = os.path.join(CACHE, "sid-apptainer")
APPTAINER_SCRIPT = os.path.join(REPOSITORY, "bench", "apptainer.sh")
FETCH = "--format=$(REPO_URI) $(RELEASE) $(COMPONENT)"


class Ready(NamedTuple):
    """A command with its environment."""

    argv: List[str]
    env: Dict[str, str]


def prepare() -> None:
    """Make what the peers need beforehand: it is no part of their time."""
    place.get_tls_registry()
    sid_root()


def podman(image: str) -> Ready:
    """`podman pull`, in a mount namespace of its own: it leaves its storage mounted on itself."""
    store = new_directory("podman")
    argv = ["unshare", "--mount", "podman", "--storage-driver", "overlay"]
    argv += ["--root", f"{store}/root", "--runroot", f"{store}/run", "pull", "--quiet"]
    reference = f"{place.get().registry}/{image}:latest"
    return Ready([*argv, "--tls-verify=false", reference], environment())


def ch_image(image: str) -> Ready:
    """`ch-image pull`, which speaks TLS only, without the build cache, which would need git."""
    reference = f"{place.get_tls_registry()}/{image}:latest"
    argv = ["ch-image", "--tls-no-verify", "--no-cache", "pull", reference]
    return Ready(argv, environment(CH_IMAGE_STORAGE=f"{new_directory('ch-image')}/storage"))


def apptainer(image: str) -> Ready:
    """`apptainer build` of Debian sid, in a chroot: Debian 12 has none."""
    work = new_directory("apptainer")
    reference = f"{place.get().registry}/{image}:latest"
    argv = ["unshare", "--mount", "sh", APPTAINER_SCRIPT, sid_root(), work, reference]
    return Ready(argv, environment())


def forget() -> None:
    """Have the kernel give back the pages of what they made, which are on the disk.

    Who comes next would wait until it takes them back one by one: a fifth of the time of an image
    of 3 GiB.  The files stay: a file system of which many were removed makes the next ones slower.
    """
    for number, name in enumerate(_made()):
        for directory, _, files in os.walk(place.get().path(f"{name}-{number}")):
            for file in files:
                _forget(os.path.join(directory, file))


def _forget(path: str) -> None:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def environment(**more: str) -> Dict[str, str]:
    """What a root without a past has in its environment."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root", **more}


def new_directory(name: str) -> str:
    """A directory that no round had before."""
    count = len(_made())
    _made().append(name)
    path = place.get().path(f"{name}-{count}")
    os.mkdir(path)
    return path


@functools.cache
def sid_root() -> str:
    """A root of Debian sid with apptainer, made on first use and kept with the images."""
    if not os.path.isdir(SID):
        progress("making a root of Debian sid with apptainer")
        os.makedirs(CACHE, exist_ok=True)
        work = f"{SID}.work"
        shutil.rmtree(work, ignore_errors=True)
        argv = ["mmdebstrap", "--mode=root", "--variant=apt", "--include=apptainer"]
        # A mirror may be a snapshot, of a day that sid's index did not outlive.
        argv += ['--aptopt=Acquire::Check-Valid-Until "false"']
        run([*argv, "sid", work, f"deb {mirror()} sid main"])
        os.rename(work, SID)
    return SID


def mirror() -> str:
    """The Debian mirror of this machine's apt."""
    text = run(["apt-get", "indextargets", FETCH, "Created-By: Packages", "Origin: Debian"])
    for line in text.splitlines():
        uri, release, component = line.split()
        if "-" not in release and component == "main":
            return uri
    raise BenchError("cannot find a Debian mirror: run apt-get update")


@functools.cache
def _made() -> List[str]:
    return []
