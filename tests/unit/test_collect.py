"""Garbage: what goes, what stays, and that looking alone changes nothing."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from hpcwrap.image import lease
from hpcwrap.image.collect import DAY, Rules, collect
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_image, write_link
from hpcwrap.image.remove import hidden_path
from hpcwrap.image.store import Link, Store
from hpcwrap.image.workspace import ensure_store, locked, new_file, workspace

OLD = time.time() - 40 * DAY
ALL = Rules(days=0, layers=1 << 40)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    ensure_store(made)
    return made


def add(store: Store, name: str, used: float = 0.0, size: int = 100) -> str:
    content = (name * size)[:size].encode()
    digest = digest_of(content)
    made = Path(store.tmp_directory) / "made"
    made.write_bytes(content)
    publish_image(store, digest, str(made), {"reference": name, "config": None, "pulled": used})
    write_link(store, Link(name, digest, used, (digest,)))
    os.utime(store.document_path(digest), (used, used))
    return digest


def removed(store: Store, rules: Rules, **more: Any) -> List[Tuple[str, str]]:
    return [(item.kind, item.name) for item in collect(store, rules, **more)]


def everything(store: Store) -> List[str]:
    return sorted(str(path) for path in Path(store.root).rglob("*"))


def test_images_nobody_used_for_long_go(store: Store) -> None:
    old = add(store, "old:1", OLD)
    add(store, "needed:1", OLD)
    add(store, "young:1", time.time())
    leased = add(store, "leased:1", OLD)
    lease.hold(store, leased, "n2", "7")
    rules = Rules(needed=frozenset(["needed:1"]), layers=1)
    before = everything(store)
    name = f"old:1 ({old[7:19]})"
    assert removed(store, rules, dry_run=True) == [("image", name)]
    assert everything(store) == before
    assert removed(store, rules)[0] == ("image", name)
    assert {image.reference for image in store.images()[0]} == {"needed:1", "young:1", "leased:1"}
    assert store.find_link("old:1") is None, "what was pulled as long ago goes, too"


def test_a_stale_lease_keeps_nothing(store: Store) -> None:
    digest = add(store, "a:1", OLD)
    for node, job in (("n1", "1"), ("n1", "2"), ("n2", "1")):
        lease.hold(store, digest, node, job)
        os.utime(Path(store.leases_directory, digest[7:], f"{node}:{job}"), (OLD, OLD))
    rules = Rules(node="n1", living=["2"], lease_days=50, layers=1)
    assert removed(store, rules) == [("lease", "job 1 on n1")]
    assert removed(store, rules._replace(lease_days=30)) == [("lease", "job 1 on n2")]
    kinds = [kind for kind, _ in removed(store, rules._replace(living=[], lease_days=30))]
    assert kinds[:3] == ["lease", "image", "reference"]


def test_a_store_above_its_bound_loses_the_longest_unused(store: Store) -> None:
    now = time.time()
    names = ["c:1", "a:1", "b:1"]
    digests = [add(store, name, now - 1000 + n, 100) for n, name in enumerate(names)]
    lease.hold(store, digests[0], "n2", "7")
    rules = Rules(size=250, layers=1)
    assert removed(store, rules, dry_run=True) == [("image", f"a:1 ({digests[1][7:19]})")]
    assert ("image", f"a:1 ({digests[1][7:19]})") in removed(store, rules)
    assert {image.reference for image in store.images()[0]} == {"b:1", "c:1"}
    assert store.find_link("a:1") is not None, "it comes back with the next job"


def test_what_kills_left_goes(store: Store) -> None:
    half = add(store, "half:1", time.time())
    os.unlink(store.document_path(half))
    hidden = add(store, "hidden:1", time.time())
    os.rename(store.document_path(hidden), hidden_path(store, hidden))
    again = add(store, "again:1", time.time())
    Path(hidden_path(store, again)).write_text("old")
    Path(store.refs_directory, ".x.abc").touch()
    Path(store.tmp_directory, "pull-left").mkdir()
    Path(store.locks_directory, "pull-left").touch()
    Path(store.locks_directory, "image-" + "0" * 64).touch()
    kinds = [kind for kind, _ in removed(store, Rules(layers=1))]
    assert kinds.count("leftover") == 5
    assert store.find("again:1") is not None
    assert sorted(os.listdir(store.images_directory)) == [f"{again[7:]}.json", f"{again[7:]}.sqsh"]
    assert os.listdir(store.tmp_directory) == []
    assert f"image-{'0' * 64}" not in os.listdir(store.locks_directory)


def test_what_is_under_way_stays(store: Store) -> None:
    half = add(store, "half:1", time.time())
    os.unlink(store.document_path(half))
    lock, path = f"image-{half[7:]}", store.ref_path("x:1")
    with locked(store, lock, 1), workspace(store, None, 1) as directory, new_file(path) as file:
        assert removed(store, ALL) == []
        assert os.path.exists(directory)
        assert os.path.exists(file.name)
    assert os.path.exists(store.squashfs_path(half))


def test_files_that_were_set_aside_go_when_no_job_has_them(store: Store) -> None:
    digest = add(store, "a:1", time.time())
    lease.hold(store, digest, "n2", "7")
    add(store, "a:1", time.time())
    (kept,) = Path(store.aside_directory).iterdir()
    rules = Rules(days=0, needed=frozenset(["a:1"]), layers=1)
    assert removed(store, rules) == []
    lease.drop(store, digest, "n2", "7")
    assert removed(store, rules) == [("aside", str(kept))]
    assert not kept.exists()


def test_the_layer_cache_keeps_to_its_bound(store: Store) -> None:
    blobs = Path(store.blobs_directory)
    blobs.mkdir()
    for number in range(4):
        (blobs / (str(number) * 64)).write_bytes(bytes(100))
        os.utime(blobs / (str(number) * 64), (number, number))
    assert removed(store, Rules(layers=250), dry_run=True) == [("layers", str(blobs))]
    assert removed(store, Rules(layers=250)) == [("layers", str(blobs))]
    assert sorted(path.name[0] for path in blobs.iterdir()) == ["2", "3"]


@pytest.mark.skipif(os.geteuid() != 0, reason="sets a file's attribute")
def test_what_cannot_be_removed_is_a_warning(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck, free = add(store, "stuck:1"), add(store, "free:1")
    path = store.squashfs_path(stuck)
    if subprocess.run(["chattr", "+i", path], check=False).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        kinds = removed(store, ALL)
        assert ("image", f"free:1 ({free[7:19]})") in kinds
        assert "image" not in [kind for kind, name in kinds if name.startswith("stuck")]
        assert "cannot remove the image stuck:1" in capsys.readouterr().err
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
