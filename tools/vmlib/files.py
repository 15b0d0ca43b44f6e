"""Kernel, initramfs and root file system of the virtual machine, from Debian's packages.

Nothing of it is installed: the kernel's package is unpacked, the root made by mmdebstrap.  All
lies in one directory of the cache, under the digest of what goes into it, published by rename.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from clusterlib.errors import ToolError
from clusterlib.layout import GROUPS, USERS
from imagelib import cache, debian
from imagelib.commands import run

HERE = os.path.dirname(os.path.realpath(__file__))
KEY_LENGTH = 12

# What process 1 of the initramfs needs; squashfs and overlay are for hpcwrap, too.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "squashfs", "overlay", "9p", "9pnet_virtio")

# Parts of the kernel's modules that the root has; all of them would be 390 MB.
KEPT_MODULES = (
    *("arch", "block", "crypto", "lib", "mm", "net"),
    *("drivers/block", "drivers/char", "drivers/infiniband", "drivers/net/dummy.ko"),
    *("drivers/net/veth.ko", "drivers/virtio", "fs/9p", "fs/configfs", "fs/fscache", "fs/fuse"),
    *("fs/netfs", "fs/overlayfs", "fs/squashfs"),
)

PACKAGES = (
    # The languages and tools of guest.py and of hpcwrap.
    *("python3", "python3-yaml", "python3-jinja2", "python3-psutil", "python3-rich"),
    *("python3-pyelftools", "iproute2", "procps", "kmod", "squashfs-tools", "busybox-static"),
    # InfiniBand.
    *("ibverbs-utils", "ibverbs-providers", "rdmacm-utils", "libfabric-bin"),
    # Slurm on cgroup v2.
    *("munge", "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins"),
)


class Files(NamedTuple):
    """What qemu is given: paths of files in the cache."""

    kernel: str
    initramfs: str
    root: str


def files(directory: str) -> Files:
    """The files in their directory."""
    return Files(*(os.path.join(directory, name) for name in ("kernel", "initramfs", "root.sqsh")))


def directory(where: str) -> str:
    """Where the files are, or will be once they are built."""
    return os.path.join(where, "vm", key())


def ensure_built(where: str) -> bool:
    """Build the files unless they are there; whether they had to be built."""
    if os.path.isdir(directory(where)):
        return False
    above = os.path.dirname(directory(where))
    os.makedirs(above, 0o755, exist_ok=True)
    with cache.locked(above):
        if os.path.isdir(directory(where)):
            return False
        remove_older(above)
        with tempfile.TemporaryDirectory(dir=above) as work:
            made = os.path.join(work, "made")
            os.mkdir(made)
            build(work, files(made))
            os.rename(made, directory(where))
    return True


def remove_older(above: str) -> None:
    """Remove files made from other inputs, and what a killed build has left."""
    for path in glob.glob(f"{above}/*"):
        shutil.rmtree(path)


def key() -> str:
    """The digest of what makes the files, and of the mirrors."""
    whole = hashlib.sha256("\n".join(debian.sources()).encode())
    for name in ("files.py", "init"):
        with open(os.path.join(HERE, name), "rb") as file:
            whole.update(file.read())
    return whole.hexdigest()[:KEY_LENGTH]


def build(work: str, made: Files) -> None:
    """Make the three files, with directories below `work` to do it in."""
    package, root = os.path.join(work, "package"), os.path.join(work, "root")
    os.mkdir(package)
    with ThreadPoolExecutor() as pool:
        rooted = pool.submit(make_root, root)
        release = unpack_kernel(package)
        os.rename(f"{package}/boot/vmlinuz-{release}", made.kernel)
        make_initramfs(package, release, os.path.join(work, "initramfs"), made.initramfs)
        rooted.result()
    add_modules(package, release, root)
    # Little is read more than once: what is not compressed is read fastest by emulated processors.
    run(["mksquashfs", root, made.root, "-quiet", "-no-progress", "-comp", "lz4"])


def unpack_kernel(package: str) -> str:
    """Unpack Debian's kernel; its release, as uname(1) shows it."""
    if debian.architecture() != "amd64":
        raise ToolError("cannot make a virtual machine here: the tests' is an x86-64 one")
    image = "linux-image-amd64"
    needs = run(["apt-cache", "depends", "--important", image]).splitlines()
    names = [line.split()[-1] for line in needs if "Depends: linux-image-" in line]
    if not names:
        raise ToolError(f"cannot find the kernel that {image} depends on: run apt-get update")
    debian.unpack_package(names[0], package)
    release = names[0].partition("linux-image-")[2]
    run(["depmod", "--basedir", package, release])
    return release


def make_root(root: str) -> None:
    """Make the root file system, with the accounts of the tests' users."""
    debian.bootstrap(PACKAGES, root)
    for name, gid in GROUPS.items():
        run(["chroot", root, "groupadd", f"--gid={gid}", name])
    for user in USERS:
        names = ",".join(user.groups)
        ids = [f"--uid={user.uid}", "--user-group", f"--groups={names}"]
        run(["chroot", root, "useradd", *ids, "--create-home", "--shell=/bin/bash", user.name])


def make_initramfs(package: str, release: str, tree: str, made: str) -> None:
    """Pack busybox, the modules that are needed to find the root, and our `init`."""
    for name in ("bin", "changes", "dev", "lower", "modules", "proc", "root", "tree"):
        os.makedirs(os.path.join(tree, name))
    shutil.copy("/bin/busybox", os.path.join(tree, "bin"))
    shutil.copy(os.path.join(HERE, "init"), tree)
    os.chmod(os.path.join(tree, "init"), 0o755)
    modules = boot_modules(package, release)
    for path in modules:
        shutil.copy(path, os.path.join(tree, "modules"))
    with open(os.path.join(tree, "modules", "order"), "w", encoding="ascii") as file:
        file.writelines(os.path.basename(path) + "\n" for path in modules)
    pack = 'find . | cpio --quiet --create --format=newc --owner=0:0 >"$0"'
    run(["sh", "-c", pack, made], cwd=tree, name="cpio")


def boot_modules(package: str, release: str) -> list[str]:
    """Paths of the modules for the initramfs, each after those that it needs."""
    show = ["modprobe", "--show-depends", f"--dirname={package}", f"--set-version={release}"]
    lines = [line for name in BOOT_MODULES for line in run([*show, name]).splitlines()]
    return list(dict.fromkeys(line.split()[1] for line in lines))


def add_modules(package: str, release: str, root: str) -> None:
    """Put the modules that tests may load where modprobe(8) in the machine finds them."""
    source, target = (f"{base}/lib/modules/{release}" for base in (package, root))
    for kept in KEPT_MODULES:
        path, copy = (os.path.join(base, "kernel", kept) for base in (source, target))
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        if os.path.isdir(path):
            shutil.copytree(path, copy)
        else:
            shutil.copy(path, copy)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(os.path.join(source, name), target)
    run(["depmod", "--basedir", root, release])
