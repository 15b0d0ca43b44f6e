"""What killed processes left in the store, in the cache and in the node's own directories."""

from __future__ import annotations

import glob
import os
import re
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Dict, Iterator, List, Tuple

from hpcwrap import owners, paths, snapshot
from hpcwrap.container import loop
from hpcwrap.finding import NOTE
from hpcwrap.image import collect, lease
from hpcwrap.image.digest import ALGORITHM
from hpcwrap.image.remove import LOOP_FILES
from hpcwrap.image.store import Store
from hpcwrap.textfile import read_text
from hpcwrap.verbs.leftover import Kind, Leftover, Node, is_at_work

UNFINISHED = re.compile(r".+\.([0-9]+)")
"""A file that process so-and-so was to rename (record.publish)."""

# ---- the store ----


def loop_devices(node: Node) -> Iterator[Leftover]:
    """Loop devices of images that the kernel will not free, or that no job here can have."""
    roots = tuple(os.path.realpath(store.root) + "/" for store in node.stores)
    for device, file in bound_files().items():
        if not file.startswith(roots):
            continue
        if not loop.goes_by_itself(device):
            detail = (
                f"{file} is bound to it, and stays so (no autoclear): a program of others did it"
            )
            yield Leftover(device, "loop device", detail, partial(detach, device))
        elif not node.jobs:
            detail = f"{file} is mounted, but no job is here: a process may be inside still"
            yield Leftover(device, "loop device", detail, state=NOTE)


def bound_files() -> Dict[str, str]:
    """The files that loop devices are bound to, by the device."""
    names = sorted(glob.glob(LOOP_FILES))
    return {f"/dev/{name.split('/')[3]}": read_text(name).strip() for name in names}


def detach(device: str) -> bool:
    """Free a loop device, or have the kernel do so after its last use."""
    loop.detach(device)
    return True


def leases(node: Node) -> Iterator[Leftover]:
    """Leases of this node's jobs that are gone.

    A prolog has the job's turn, and makes its directory, before it takes the lease.
    """
    host = os.uname().nodename
    names = {host, host.partition(".")[0]}
    for store in node.stores:
        for digits in lease.leased(store):
            digest = f"{ALGORITHM}:{digits}"
            for one in lease.holders(store, digest):
                if one.node in names and is_given_up(one.job):
                    where = f"{store.leases_directory}/{digits}"
                    detail = f"job {one.job} of this node has it, and is gone"
                    remove = partial(drop_lease, store, digest, one)
                    yield Leftover(where, "lease", detail, remove)


def is_given_up(job: str) -> bool:
    """Whether nothing on this node can hold a lease in that name."""
    if job.startswith(lease.EXPORT):
        return not os.path.exists(f"/proc/{job[len(lease.EXPORT) :]}")
    place = paths.JobPaths(job, paths.JOBS)
    return not os.path.isdir(place.directory) and not is_at_work(place)


def drop_lease(store: Store, digest: str, one: lease.Lease) -> bool:
    """Give a lost lease back, in the turn of its job."""
    place = paths.JobPaths(one.job, paths.JOBS)
    with owners.turn(place, wait=False) as ours:
        if not ours or os.path.isdir(place.directory):
            return False
        lease.drop(store, digest, one.node, one.job)
    return one not in lease.holders(store, digest)


def store_files(node: Node) -> Iterator[Leftover]:
    """What killed pulls and removals left in store and cache, and locks of what is gone."""
    for store in node.stores:
        for item in collect.unfinished(store):
            yield Leftover(item.name, "half-made file", item.reason, item.remove)
        for item in collect.unused_locks(store):
            yield Leftover(item.name, "lock", item.reason, item.remove, NOTE)


# ---- the node's own files ----


def node_files(_node: Node) -> Iterator[Leftover]:
    """Files that a killed process did not rename, beside those that it would have become."""
    table = os.path.dirname(paths.SLURM_TABLE)
    for directory in (paths.RUN, paths.SNAPSHOTS, paths.LIBRARIES, table):
        for path in files_in(directory):
            if is_unfinished(path):
                detail = "the process that wrote it is gone"
                yield Leftover(path, "half-made file", detail, partial(unlink, path))


def files_in(directory: str) -> List[str]:
    """The files of a directory, links included; none where it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = os.scandir(directory)
        return sorted(entry.path for entry in found if not entry.is_dir(follow_symlinks=False))
    return []


def is_unfinished(path: str) -> bool:
    """Whether nobody will rename a file any more: by its writer's number, or its age."""
    numbered = UNFINISHED.fullmatch(path)
    if numbered:
        return not os.path.exists(f"/proc/{numbered.group(1)}")
    if not path.endswith(snapshot.UNFINISHED):
        return False
    with suppress(FileNotFoundError):
        return os.stat(path).st_mtime_ns < time.time_ns() - snapshot.ABANDONED_NS
    return False


def helper_socket(_node: Node) -> Iterator[Leftover]:
    """A socket that nobody listens on: every job would be told that the helper does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
        try:
            talk.connect(paths.HELPER_SOCKET)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            detail = "nobody listens: then start hpcwrap-helper.socket"
            remove = partial(unlink, paths.HELPER_SOCKET)
            yield Leftover(paths.HELPER_SOCKET, "socket", detail, remove)


def unlink(path: str) -> bool:
    """Remove a file; one that is gone already did not go by us."""
    with suppress(FileNotFoundError):
        os.unlink(path)
        return True
    return False


KINDS: Tuple[Kind, ...] = (loop_devices, leases, store_files, node_files, helper_socket)
