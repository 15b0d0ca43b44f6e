"""Several who want the same image at once: one pulls, the others wait without hurry."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, List

import killing
import pytest
from fronts import Front
from killing import Ended
from registries import Registry
from tars import Member, make_layer

from hpcwrap.image.cache import bring
from hpcwrap.image.store import Image, Store
from hpcwrap.image.workspace import BusyError, ensure_store, locked

pytestmark = pytest.mark.registry


def wait_for_lock(root: str, seconds: float) -> Ended:
    """What one who waits so long for a lock that another holds does."""
    store = Store(f"{root}/store")
    ensure_store(store)
    path = Path(store.locks_directory, "taken")

    def work() -> int:
        try:
            with locked(store, "taken", seconds):
                return 1
        except BusyError:
            return 0

    with path.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        return killing.run(work, Path(root, "log"))


def test_who_waits_looks_less_and_less_often(root: str) -> None:
    short, long = wait_for_lock(root, 0.5), wait_for_lock(root, 4)
    assert (short.code, long.code) == (0, 0)
    assert long.changes["leader"] < 20, "a look each 0.05 s would be 80"
    assert long.changes["leader"] < 4 * short.changes["leader"], "eight times as long"


def test_another_takes_over_when_the_puller_is_killed(
    push: Any, cli: Any, root: str, registry: Registry
) -> None:
    layer = make_layer([Member("big", content=os.urandom(4_000_000))])
    digest = push("takeover:1", [layer]).layers[0]
    front = Front(Path(root), registry, rate=3_000_000)
    store = Store(cli.store)
    children = []
    try:
        for _ in range(4):
            children.append(cli.start("pull", "--json", f"{front.host}/takeover:1"))
            assert eventually(lambda: len(pullers(store)) == len(children))
        assert eventually(lambda: front.downloads(digest) == 1)
        children[0].kill()
        results = [(*child.communicate(timeout=60), child.returncode) for child in children]
    finally:
        front.stop()
    assert [code for _, _, code in results] == [-9, 0, 0, 0], results
    assert sorted(json.loads(out)["new"] for out, _, _ in results[1:]) == [False, False, True]
    assert front.downloads(digest) == 2
    assert killing.left_over(store) == []


def test_the_jobs_of_a_node_make_one_copy(push: Any, cli: Any, root: str) -> None:
    pushed = push("copies:1", [make_layer([Member("big", content=os.urandom(8_000_000))])])
    assert cli("pull", "--quiet", pushed.reference).returncode == 0
    site, own = Store(cli.store), Store(f"{root}/cache")
    image = site.find_digest(pushed.digest)
    assert image
    children = [begin(lambda: copies_made(site, own, image)) for _ in range(8)]
    made = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(made) == [0] * 7 + [1]
    assert own.digests() == [pushed.digest]


def begin(work: Callable[[], int]) -> int:
    """Start a child process that ends with what `work` returns."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def copies_made(site: Store, own: Store, image: Image) -> int:
    """Bring an image into a node's cache; how many squashfs files this process put there."""
    renamed = []
    sys.addaudithook(lambda event, of: renamed.append(of[1]) if event == "os.rename" else None)
    found = bring(site, own, image, 1 << 30)
    assert found.squashfs == own.squashfs_path(image.digest)
    return renamed.count(found.squashfs)


def pullers(store: Store) -> List[str]:
    """The processes that have a reference's lock open: who holds it, and who waits for it."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor).startswith(f"{store.locks_directory}/ref-"):
                found.append(descriptor.parts[2])
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what is to come true."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()
