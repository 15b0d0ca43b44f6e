"""Leases: taken and dropped at once by many, and what takes images out looks at them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import List

import pytest

from hpcwrap import epilog, record
from hpcwrap.errors import UserError
from hpcwrap.image import lease
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_image, publish_link
from hpcwrap.image.remove import hidden_path, put_back, remove, remove_unused, take_out, users_of
from hpcwrap.image.store import Store
from hpcwrap.image.workspace import ensure_store
from hpcwrap.paths import JobPaths

REPOSITORY = str(Path(__file__).parents[2])
OTHER = digest_of(b"other")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    ensure_store(made)
    return made


def add(store: Store, name: str = "a:1") -> str:
    digest = digest_of(name.encode())
    made = Path(store.tmp_directory) / f"made-{time.time_ns()}"
    made.write_text(name)
    publish_image(store, digest, str(made), {"reference": name, "config": None, "pulled": 0})
    publish_link(store, name, digest)
    return digest


def test_holders_are_those_who_hold(store: Store) -> None:
    digest = add(store)
    assert lease.hold(store, digest, "n1", "7")
    assert lease.hold(store, digest, "n1", "7")
    assert lease.hold(store, digest, "a/b:c%", "x:y")
    assert {(one.node, one.job) for one in lease.holders(store, digest)} == {
        ("n1", "7"),
        ("a/b:c%", "x:y"),
    }
    assert lease.holders(store, OTHER) == []
    lease.drop(store, digest, "n1", "7")
    lease.drop(store, digest, "n1", "7")
    lease.drop(store, digest, "a/b:c%", "x:y")
    assert os.listdir(store.leases_directory) == []


def test_a_store_that_cannot_be_written_has_no_leases(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file"))
    assert not lease.hold(store, OTHER, "n", "1")
    lease.drop(store, OTHER, "n", "1")


def test_leases_of_lost_jobs_are_found(store: Store) -> None:
    for node, job in (("n1", "1"), ("n1", "2"), ("n1", "3"), ("n2", "1")):
        lease.hold(store, OTHER, node, job)
        if job != "3":
            os.utime(Path(store.leases_directory, OTHER[7:], f"{node}:{job}"), (9, 9))
    found = lease.stale_leases(store, lambda one: lease.is_lost(one, "n1", ["2"]))
    assert [(digest, one.node, one.job) for digest, one in found] == [(OTHER, "n1", "1")]


def test_rm_names_the_job(store: Store) -> None:
    digest = add(store)
    lease.hold(store, digest, "n1", "7")
    for text in ("a:1", digest[7:19]):
        with pytest.raises(UserError, match="job 7 on n1 uses it"):
            remove(store, text)
    for job in range(8, 12):
        lease.hold(store, digest, "n2", str(job))
    with pytest.raises(UserError, match="and 2 more use it"):
        remove(store, "a:1")
    assert store.find("a:1") is not None
    assert len(users_of(store, digest)) == 5


def test_a_removal_that_was_killed_goes_on_or_back(store: Store) -> None:
    digest = add(store)
    os.rename(store.document_path(digest), hidden_path(store, digest))
    assert store.find("a:1") is None
    put_back(store, digest)
    assert store.find("a:1") is not None
    os.rename(store.document_path(digest), hidden_path(store, digest))
    add(store)  # pulled again meanwhile
    put_back(store, digest)
    assert not os.path.exists(hidden_path(store, digest))
    assert take_out(store, digest)
    assert os.listdir(store.images_directory) == []


def test_an_image_that_is_pulled_again_does_not_replace_what_a_job_has_open(store: Store) -> None:
    digest = add(store)
    inode = os.stat(store.squashfs_path(digest)).st_ino
    lease.hold(store, digest, "n1", "7")
    add(store)
    assert os.stat(store.squashfs_path(digest)).st_ino != inode
    (kept,) = Path(store.aside_directory).iterdir()
    assert kept.stat().st_ino == inode


def test_no_job_loses_its_image_to_a_removal(store: Store) -> None:
    """Prologs and a remover at once: who holds a lease and then sees the image keeps it."""
    digest = add(store)
    lost: List[str] = []
    end = threading.Event()

    def remover() -> None:
        while not end.is_set():
            if remove_unused(store, digest):
                add(store)

    removing = threading.Thread(target=remover)
    jobs = [
        threading.Thread(target=use_often, args=(store, digest, f"n{number}", lost))
        for number in range(4)
    ]
    for thread in (removing, *jobs):
        thread.start()
    for thread in jobs:
        thread.join()
    end.set()
    removing.join()
    assert lost == []


def use_often(store: Store, digest: str, node: str, lost: List[str]) -> None:
    """Do what the prologs and epilogs of 60 jobs do."""
    for job in map(str, range(60)):
        lease.hold(store, digest, node, job)
        store.look_anew()
        image = store.find("a:1")
        time.sleep(0.002)  # the job: removals fall into it
        if image and not os.path.exists(image.squashfs):
            lost.append(f"{node}:{job}")
        lease.drop(store, digest, node, job)


@pytest.mark.parametrize("module", ["lease", "cache"])
def test_the_warm_prolog_imports_little(module: str) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        f"import hpcwrap.image.{module}; print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-SI", "-c", script, REPOSITORY],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"hashlib", "pathlib", "subprocess", "dataclasses", "tempfile", "threading", "shutil"}
    assert not heavy & set(loaded)


def test_an_epilog_without_a_record_gives_leases_back(store: Store, tmp_path: Path) -> None:
    """A prolog was killed after it took a lease, and while it noted another."""
    place = JobPaths("7", str(tmp_path / "jobs"))
    os.makedirs(place.directory)
    record.begin_leases(place)
    for held in (record.Held(store.root, OTHER, "n1"), record.Held(store.root, OTHER, "n2")):
        record.note_lease(place, held)
        lease.hold(store, OTHER, held.node, "7")
    with open(place.leases, "a", encoding="utf-8") as file:
        file.write('["' + store.root)
    epilog.drop(place)
    assert lease.holders(store, OTHER) == []
    assert not os.path.exists(place.directory)
