"""Images that this node has mounted stay, whatever takes images out, and go when it has not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from hpcwrap.errors import UserError
from hpcwrap.image.cache import bring, evict
from hpcwrap.image.collect import Rules, collect
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_image, publish_link
from hpcwrap.image.remove import loop_device_of, remove
from hpcwrap.image.store import Image, Store
from hpcwrap.image.verify import verify
from hpcwrap.image.workspace import ensure_store

ALL = Rules(days=0, layers=1 << 40)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    ensure_store(made)
    return made


@pytest.fixture
def image(store: Store, squashfs: Path) -> Image:
    """The tests' image, published in the store."""
    digest = digest_of(b"manifest")
    publish(store, digest, squashfs, "a:1")
    return store.read_image(digest, "a:1")


def publish(store: Store, digest: str, squashfs: Path, name: str) -> None:
    made = Path(store.tmp_directory) / "made"
    shutil.copy(squashfs, made)
    publish_image(store, digest, str(made), {"reference": name, "config": None, "pulled": 0})
    publish_link(store, name, digest)


def mounted(image: Image, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", image.squashfs, where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.fixture
def tree(image: Image, tmp_path: Path) -> Iterator[Path]:
    """Where the image is mounted."""
    yield from mounted(image, tmp_path / "mounted")


def test_nothing_takes_a_mounted_image(store: Store, image: Image, tree: Path) -> None:
    device = loop_device_of(image.squashfs)
    assert device is not None
    with pytest.raises(UserError, match=f"{device} on this node uses it"):
        remove(store, "a:1")
    assert evict(store, 0) == []
    assert list(collect(store, ALL)) == []
    assert store.find("a:1") is not None
    assert (tree / "bin" / "busybox").stat().st_size > 0


def test_it_goes_when_it_is_unmounted(store: Store, image: Image, tmp_path: Path) -> None:
    for _ in mounted(image, tmp_path / "mounted"):
        assert list(collect(store, ALL)) == []
    assert [item.kind for item in collect(store, ALL)][:1] == ["image"]
    assert store.find("a:1") is None


def test_a_mounted_copy_stays_in_the_cache(store: Store, image: Image, tmp_path: Path) -> None:
    cache = Store(str(tmp_path / "cache"))
    copy = bring(store, cache, image, image.size)
    for tree in mounted(copy, tmp_path / "mounted"):
        assert evict(cache, 0) == []
        assert remove(store, "a:1").digest == image.digest
        assert (tree / "bin" / "busybox").stat().st_size > 0
    assert [one.digest for one in evict(cache, 0)] == [image.digest]


def test_a_mounted_image_is_repaired_beside_the_one_in_use(
    store: Store, image: Image, squashfs: Path, tree: Path
) -> None:
    content = bytearray(Path(image.squashfs).read_bytes())
    content[-1] ^= 0xFF
    Path(image.squashfs).chmod(0o600)
    with open(image.squashfs, "r+b") as file:
        file.write(content)

    def again(text: str) -> None:
        publish(store, image.digest, squashfs, text)

    (found,) = verify(store, [image.digest], again)
    assert "is not what was written there" in found.problem
    assert found.repair.startswith("pulled again")
    assert [one.problem for one in verify(store, [image.digest])] == [""]
    (aside,) = [name for name in Path(store.aside_directory).iterdir() if name.suffix == ".sqsh"]
    assert loop_device_of(str(aside)) is not None
    assert (tree / "bin" / "busybox").stat().st_size > 0
    removed = [item.name for item in collect(store, ALL)]
    assert str(aside) not in removed
    assert image.digest not in [one.digest for one in store.images()[0]], "it is not in use"
    assert aside.exists()
