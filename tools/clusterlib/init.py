#!/usr/bin/python3 -I
"""Process 1 of a node: builds the node's root, says `ready`, then reaps until it is killed.

Run as `init.py STATE COMPUTE_NODES LOWER_ROOT SCHEDULER NODE` by `tools/cluster up`.  All that a
node is hangs on this one process: when it dies the kernel kills every process of its PID namespace,
and with the last of them go the mounts, the network and, in ctl, the bridge.  Nothing is named
anywhere outside, so nothing has to be tidied up after a crash.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Mapping

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from clusterlib import nodefiles, services, syscalls
from clusterlib.files import read, write
from clusterlib.layout import Cluster, shares_of

READY = "ready"
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def main(argv: list[str]) -> int:
    """Make the namespaces and become, in a child, process 1 of them."""
    state, compute_nodes, lower_root, scheduler, node = argv
    cluster = Cluster(state, int(compute_nodes), lower_root, scheduler)
    syscalls.unshare(syscalls.NODE_NAMESPACES)
    if os.fork() > 0:
        return 0
    try:
        build(cluster, node)
    except OSError as error:
        print(error, flush=True)
        return 1
    print(READY, flush=True)
    reap_for_ever()
    return 0


def build(cluster: Cluster, node: str) -> None:
    """The node, from the outside in: root, its kernel file systems, shares, files, pivot."""
    scheduler = services.load(cluster.scheduler)
    syscalls.sethostname(node)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = mount_root(cluster, node)
    mount_kernel_file_systems(root)
    mount_own_directories(root)
    for share in (*shares_of(node), *scheduler.SHARES):
        bind(cluster.path(share.source), root + share.target)
    if cluster.lower_root != "/":
        # The machine's root has this checkout, a tree of packages has not.
        bind(REPOSITORY, root + REPOSITORY)
    write_files(cluster, node, root, scheduler.variables())
    scheduler.prepare_node(cluster, node, root)
    enter_root(root)


def mount_root(cluster: Cluster, node: str) -> str:
    """Mount the overlay and return its path.

    The upper directory is on a tmpfs of the node: on the file system of the lower one the kernel
    would refuse it as overlapping when the lower directory is /.
    """
    base = cluster.node_dir(node)
    syscalls.mount("node", base, "tmpfs", data="mode=0755")
    lower, upper, work, root = cluster.lower_root, f"{base}/upper", f"{base}/work", f"{base}/root"
    for directory in (upper, work, root):
        os.mkdir(directory)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    syscalls.mount("node", root, "overlay", data=layers)
    return root


def mount_kernel_file_systems(root: str) -> None:
    """/proc and /sys of the node's own namespaces; /dev and cgroups of the machine.

    The machine's devtmpfs, because loop devices appear in it as they are made; its devpts, because
    a terminal that comes in from outside must have a name inside (ttyname(3)).
    """
    careful = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", f"{root}/proc", "proc", careful)
    syscalls.mount("sysfs", f"{root}/sys", "sysfs", careful)
    bind("/sys/fs/cgroup", f"{root}/sys/fs/cgroup")
    bind("/dev", f"{root}/dev")
    syscalls.mount("shm", f"{root}/dev/shm", "tmpfs", careful, "mode=1777")


def mount_own_directories(root: str) -> None:
    """/tmp and /run: PMIx makes /tmp/spmix_appdir_…, and fails if another node has made it."""
    careful = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmp", f"{root}/tmp", "tmpfs", careful, "mode=1777")
    syscalls.mount("run", f"{root}/run", "tmpfs", careful, "mode=0755")


def bind(source: str, target: str) -> None:
    """Bind `source` and all that is mounted below it on `target`, which is made if need be."""
    if not os.path.isdir(target):
        os.makedirs(target, 0o755)
    syscalls.mount(source, target, flags=syscalls.MS_BIND | syscalls.MS_REC)


def write_files(cluster: Cluster, node: str, root: str, variables: Mapping[str, str]) -> None:
    """What every node has for itself in /etc, whatever its scheduler; `variables` are a login's."""
    write(root + "/etc/environment", nodefiles.variables_text(variables))
    for path, text in nodefiles.texts(cluster, node).items():
        write(root + path, text)
    for path, merge in (("/etc/passwd", nodefiles.passwd), ("/etc/group", nodefiles.group)):
        write(root + path, merge(read(root + path)))


def enter_root(root: str) -> None:
    """Make `root` the root, and let go of the machine's (pivot_root(2), "pivot_root(".", ".")")."""
    os.chdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def reap_for_ever() -> None:
    """Let go of the starter's pipe and bury orphans; process 1 gets no signal that it asks not."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        while bury_one():
            pass


def bury_one() -> bool:
    """Reap one dead child; False when there is none now."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
