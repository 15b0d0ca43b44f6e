"""Locks and workspaces of a store."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_link
from hpcwrap.image.store import Store
from hpcwrap.image.worker import Report, work_as
from hpcwrap.image.workspace import (
    ensure_store,
    leftovers,
    locked,
    locked_unless,
    new_file,
    remove_leftover,
    remove_lock,
    workspace,
)
from hpcwrap.run import Identity

NOBODY = Identity(65534, 65534) if os.geteuid() == 0 else None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    ensure_store(made)
    return made


def test_one_holder_of_a_lock_at_a_time(store: Store) -> None:
    events: List[str] = []

    def second() -> None:
        with locked(store, "x", 10, lambda node: events.append(f"waits for {node}")) as waited:
            events.append(f"has it, waited {waited}")

    with locked(store, "x", 10) as waited:
        assert not waited
        thread = threading.Thread(target=second)
        thread.start()
        while not events:
            time.sleep(0.01)
        events.append("gives it")
    thread.join()
    assert events == [f"waits for {os.uname().nodename}", "gives it", "has it, waited True"]
    with locked(store, "x", 10), pytest.raises(SiteError, match="waited"), locked(store, "x", 0.1):
        pytest.fail("both hold it")


def test_a_workspace_goes_and_what_killed_pulls_left_too(store: Store) -> None:
    script = (
        "import os, signal, sys; from hpcwrap.image.store import Store;"
        "from hpcwrap.image.workspace import workspace\n"
        f"with workspace(Store({store.root!r}), None, 5) as d:\n"
        "    open(d + '/blob', 'w').close(); print(d, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    repository = str(Path(__file__).parents[2])
    left = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert os.path.exists(left + "/blob")
    with workspace(store, None, 5) as one:
        assert not os.path.exists(left)
        with workspace(store, None, 5) as two:
            assert sorted(os.listdir(store.tmp_directory)) == sorted(
                map(os.path.basename, (one, two))
            )
    assert os.listdir(store.tmp_directory) == []


def test_a_workspace_goes_however_deep_its_directories_are(store: Store) -> None:
    """A worker that somebody took over must not stop the pulls that follow."""
    here = os.open(".", os.O_RDONLY)
    with workspace(store, None, 5) as directory:
        os.chdir(directory)
        for _ in range(2000):
            os.mkdir("d")
            os.chdir("d")
        Path("file").write_bytes(b"12345")
        os.fchdir(here)
    os.close(here)
    assert not os.path.exists(directory)


def test_files_that_nobody_renamed_go_with_their_writer(store: Store) -> None:
    old = Path(store.images_directory, ".b.new")
    old.touch()
    hidden = Path(store.images_directory, ".b.json.removing")
    hidden.touch()
    silly = Path(store.refs_directory, ".nfs0001")
    silly.touch()
    with new_file(store.ref_path("a:1")) as fresh, workspace(store, None, 5):
        assert os.path.exists(fresh.name)
        assert not old.exists()
        assert hidden.exists()
        assert silly.exists()
    assert not os.path.exists(fresh.name)
    assert store.links() == ([], [])


def test_a_store_that_is_not_ours() -> None:
    with tempfile.TemporaryDirectory() as directory:
        if NOBODY:
            os.chown(directory, NOBODY.uid, NOBODY.gid)
        os.mkdir(directory + "/closed", 0o500)

        def work(_: Report) -> Dict[str, Any]:
            return {"made": ensure_store(Store(directory + "/closed/store"))}

        with pytest.raises(UserError, match="cannot write to the store"):
            work_as(NOBODY, directory, work, lambda _: None, 10)


def test_locks_are_closed_to_others(store: Store) -> None:
    assert os.stat(store.locks_directory).st_mode & 0o777 == 0o700
    with locked(store, "x", 1):
        descriptor = os.open(os.path.join(store.locks_directory, "x"), os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_who_waits_takes_what_arrives_instead_of_the_lock(store: Store) -> None:
    asked: List[str] = []

    def arrived() -> bool:
        asked.append("asked")
        return len(asked) == 3

    with locked_unless(store, "x", 10, arrived) as held:
        assert held
        assert asked == [], "who gets the lock at once looks for himself"
        with locked_unless(store, "x", 10, arrived, lambda *_: asked.append("waits")) as inner:
            assert not inner
    assert asked == ["waits", "asked", "asked"]


def test_a_lock_that_is_removed_is_taken_anew_by_all(store: Store) -> None:
    """Lockers and removers at once: never do two hold the lock."""
    holding: List[int] = []
    most: List[int] = []
    end = threading.Event()

    def take_often(number: int) -> None:
        for _ in range(60):
            with locked(store, "x", 20):
                holding.append(number)
                time.sleep(0.001)  # removals and other threads fall into it
                most.append(len(holding))
                holding.remove(number)

    def remove_often() -> None:
        while not end.is_set():
            remove_lock(store, "x")

    threads = [threading.Thread(target=take_often, args=(number,)) for number in range(4)]
    remover = threading.Thread(target=remove_often)
    for thread in (remover, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    end.set()
    remover.join()
    assert (max(most), len(most)) == (1, 240)


def test_a_lock_in_use_is_not_removed(store: Store) -> None:
    with locked(store, "x", 1):
        assert not remove_lock(store, "x")
    assert remove_lock(store, "x")
    assert not remove_lock(store, "x")


def test_who_looks_for_leftovers_disturbs_no_writer(store: Store) -> None:
    end = threading.Event()

    def clean() -> None:
        while not end.is_set():
            for path in leftovers(store):
                remove_leftover(store, path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    for number in range(200):
        publish_link(store, f"a:{number}", digest_of(b"x"))
    end.set()
    cleaner.join()
    links, problems = store.links()
    assert (len(links), problems) == (200, [])
    assert [name for name in os.listdir(store.refs_directory) if name.startswith(".")] == []
