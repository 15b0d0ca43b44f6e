"""A node's cache: filled once, bounded, and never in the way of a job."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import List

import pytest

from hpcwrap.errors import SiteError
from hpcwrap.image import cache as caching
from hpcwrap.image import lease
from hpcwrap.image.cache import bring, copy_bytes, evict
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_image, publish_link
from hpcwrap.image.store import Image, Store
from hpcwrap.image.workspace import ensure_store, locked

KB = 1000


@pytest.fixture
def site(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "site"))
    ensure_store(made)
    return made


@pytest.fixture
def node(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "node"))


def add(store: Store, name: str, size: int = KB, used: float = 0.0, **fields: object) -> Image:
    """Publish an image of that size that was used `used` seconds after the epoch."""
    content = (name.encode() * size)[:size]
    digest = digest_of(content)
    made = Path(store.tmp_directory) / "made"
    made.write_bytes(content)
    document = {"reference": name, "config": None, "pulled": 0.0, **fields}
    publish_image(store, digest, str(made), document)
    publish_link(store, name, digest)
    os.utime(store.document_path(digest), (used, used))
    return store.read_image(digest, name)


def names(store: Store) -> List[str]:
    return sorted(image.reference for image in store.images()[0])


def test_a_copy_is_the_image(site: Store, node: Store) -> None:
    image = add(site, "a:1", 3 * KB)
    copy = bring(site, node, image, 10 * KB)
    assert copy.squashfs == node.squashfs_path(image.digest)
    assert Path(copy.squashfs).read_bytes() == Path(image.squashfs).read_bytes()
    assert copy._replace(squashfs=image.squashfs, used=image.used) == image
    assert os.stat(copy.squashfs).st_mode & 0o7777 == 0o444
    inode = os.stat(copy.squashfs).st_ino
    assert os.stat(bring(site, node, image, 10 * KB).squashfs).st_ino == inode
    assert time.time() - os.stat(site.document_path(image.digest)).st_mtime < 60


def test_private_stays_private_and_the_site_says_whose(site: Store, node: Store) -> None:
    image = add(site, "a:1", uids=[1001])
    copy = bring(site, node, image, 10 * KB)
    for path in (copy.squashfs, node.document_path(image.digest)):
        assert os.stat(path).st_mode & 0o7777 == 0o400
    assert bring(site, node, image._replace(uids=(1001, 1002)), 10 * KB).uids == (1001, 1002)


def test_the_longest_unused_leave_for_a_new_one(site: Store, node: Store) -> None:
    for number, name in enumerate(("b:1", "a:1", "c:1")):
        copy = bring(site, node, add(site, name, used=1.0), 3 * KB)
        os.utime(node.document_path(copy.digest), (number, number))
    lease.hold(node, node.images()[0][0].digest, "n", "1")
    bring(site, node, add(site, "d:1", 2 * KB), 4 * KB)
    assert len(names(node)) == 3
    assert "b:1" not in names(node) or "a:1" not in names(node)


def test_eviction_goes_by_last_use_and_spares_leases(site: Store) -> None:
    images = [add(site, f"{name}:1", used=number) for number, name in enumerate("abcd")]
    lease.hold(site, images[0].digest, "n1", "7")
    assert [image.reference for image in evict(site, 2 * KB, keep=(images[1].digest,))] == [
        "c:1",
        "d:1",
    ]
    assert names(site) == ["a:1", "b:1"]
    assert evict(site, 0, keep=(images[1].digest,)) == []
    lease.drop(site, images[0].digest, "n1", "7")
    assert [image.reference for image in evict(site, 0)] == ["a:1", "b:1"]
    assert site.find("a:1") is None
    assert site.find_link("a:1") is not None


def test_an_image_that_somebody_works_on_stays(site: Store) -> None:
    image = add(site, "a:1")
    with locked(site, f"image-{image.digest[7:]}", 1):
        assert evict(site, 0) == []
    assert site.find("a:1") is not None


@pytest.mark.parametrize("reason", ["larger than the cache", "all in use", "disk full"])
def test_where_there_is_no_room_the_site_s_image_is_used(
    site: Store, node: Store, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 3 * KB
    if reason == "all in use":
        other = bring(site, node, add(site, "b:1", 2 * KB), limit)
        lease.hold(node, other.digest, "n", "1")
    image = add(site, "a:1", 2 * KB if reason != "larger than the cache" else 4 * KB)
    if reason == "disk full":
        monkeypatch.setattr(caching, "LEFT_FREE", 1.0)
    assert bring(site, node, image, limit) == image
    assert "a:1" not in names(node)


def test_a_cache_that_cannot_be_written_is_a_warning(
    site: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = add(site, "a:1")
    (tmp_path / "file").touch()
    assert bring(site, Store(str(tmp_path / "file" / "cache")), image, 10 * KB) == image
    assert "cannot copy a:1 into the cache" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["open", "link", "other"])
def test_a_cache_that_others_may_fill_is_not_used(
    site: Store, node: Store, tmp_path: Path, kind: str
) -> None:
    image = add(site, "a:1")
    assert bring(site, node, image, 10 * KB).squashfs != image.squashfs
    if kind == "open":
        os.chmod(node.root, 0o777)
    elif kind == "link":
        os.rename(node.root, tmp_path / "moved")
        os.symlink(tmp_path / "moved", node.root)
    if kind != "open":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(node.root, 12001, 12001, follow_symlinks=False)
    assert bring(site, node, image, 10 * KB) == image


def test_damage_is_not_copied(site: Store, node: Store) -> None:
    image = add(site, "a:1")
    os.chmod(image.squashfs, 0o644)
    with open(image.squashfs, "r+b") as file:
        file.write(b"X")
    with pytest.raises(SiteError, match="is damaged"):
        bring(site, node, image, 10 * KB)
    assert names(node) == []
    assert os.listdir(node.images_directory) == []


def test_many_at_once_copy_once(site: Store, node: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = add(site, "a:1")
    copies: List[int] = []
    monkeypatch.setattr(
        caching, "copy_bytes", lambda a, b: (copies.append(a), copy_bytes(a, b), None)[-1]
    )
    found: List[Image] = []
    threads = [
        threading.Thread(target=lambda: found.append(bring(site, node, image, 10 * KB)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1
    assert {one.squashfs for one in found} == {node.squashfs_path(image.digest)}


def test_copies_between_file_systems(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if os.stat(memory).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("both are one file system here")
    content = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(content)
    target = memory / f"hpcwrap-test-{os.getpid()}"
    try:
        with open(tmp_path / "a", "rb") as source, open(target, "wb") as file:
            with pytest.raises(OSError, match=r"[Cc]ross-device|Invalid"):
                os.copy_file_range(source.fileno(), file.fileno(), 1)
            copy_bytes(source.fileno(), file.fileno())
        assert target.read_bytes() == content
    finally:
        target.unlink()
