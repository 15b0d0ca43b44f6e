"""The layer cache: what it gives, what it keeps, what it drops."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Tuple

import pytest

from hpcwrap import run
from hpcwrap.image.digest import digest_of, hex_digits
from hpcwrap.image.layers import keep, offer, prepare_cache, trim
from hpcwrap.image.manifest import Blob

CONTENTS = [b"a" * 100, b"b" * 200, b"c" * 300]
BLOBS = [Blob(digest_of(content), len(content), "") for content in CONTENTS]


def name(blob: Blob) -> str:
    return hex_digits(blob.digest)


@pytest.fixture(name="places")
def make_places(tmp_path: Path) -> Tuple[Path, Path]:
    """A cache and a download, both empty."""
    cache, download = tmp_path / "cache", tmp_path / "download"
    for directory in (cache, download):
        directory.mkdir()
    return cache, download


def fill(directory: Path, numbers: List[int]) -> None:
    for number in numbers:
        (directory / name(BLOBS[number])).write_bytes(CONTENTS[number])


def names(directory: Path) -> List[str]:
    return sorted(os.listdir(directory))


def test_what_is_kept_is_offered_to_the_next(places: Tuple[Path, Path]) -> None:
    cache, download = places
    fill(download, [0, 1])
    keep(str(cache), BLOBS, str(download))
    assert names(cache) == sorted(map(name, BLOBS[:2]))
    for path in download.iterdir():
        path.unlink()
    assert offer(str(cache), BLOBS, str(download)) == BLOBS[:2]
    for number in (0, 1):
        assert (download / name(BLOBS[number])).read_bytes() == CONTENTS[number]
        assert os.stat(download / name(BLOBS[number])).st_nlink == 2


@pytest.mark.parametrize("damage", ["changed", "short", "long", "link", "directory", "pipe"])
def test_what_is_not_its_digest_is_dropped(places: Tuple[Path, Path], damage: str) -> None:
    cache, download = places
    path = cache / name(BLOBS[0])
    if damage == "link":
        (cache / "elsewhere").write_bytes(CONTENTS[0])
        path.symlink_to("elsewhere")
    elif damage == "directory":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        changed = {"changed": b"b" * 100, "short": b"a" * 99, "long": b"a" * 101}
        path.write_bytes(changed[damage])
    assert offer(str(cache), BLOBS, str(download)) == []
    assert names(download) == []
    assert path.is_dir() is (damage == "directory")
    assert not path.is_file()


def test_a_cache_that_is_not_there_is_empty(places: Tuple[Path, Path], tmp_path: Path) -> None:
    _, download = places
    nowhere = str(tmp_path / "nowhere")
    fill(download, [0])
    keep(nowhere, BLOBS, str(download))
    trim(nowhere, 0)
    assert offer(nowhere, BLOBS, str(download)) == []
    assert not os.path.exists(nowhere)


def test_what_was_not_used_for_longest_goes_first(places: Tuple[Path, Path]) -> None:
    cache, download = places
    fill(cache, [0, 1, 2])
    for number in range(3):
        os.utime(cache / name(BLOBS[number]), (1000 + number, 1000 + number))
    trim(str(cache), 600)
    assert len(names(cache)) == 3
    offer(str(cache), BLOBS[:1], str(download))
    trim(str(cache), 400)
    assert names(cache) == sorted(map(name, (BLOBS[0], BLOBS[2])))
    trim(str(cache), 399)
    assert names(cache) == [name(BLOBS[0])]
    trim(str(cache), 0)
    assert names(cache) == []
    assert names(download) == [name(BLOBS[0])]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an image user")
def test_the_cache_is_the_image_users(tmp_path: Path) -> None:
    directory = tmp_path / "blobs"
    for _ in range(2):
        prepare_cache(str(directory), run.Identity(65534, 65534))
        found = os.stat(directory)
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (65534, 65534, 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives anything away")
def test_root_gives_nothing_away_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "blobs").symlink_to("roots")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        prepare_cache(str(tmp_path / "blobs"), run.Identity(65534, 65534))
    assert os.stat(tmp_path / "roots").st_uid == 0
