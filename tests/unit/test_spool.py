"""Spools that follow a blob while it is written: what they take for whole, and for which layer."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Any, Callable, List

import pytest
from tars import Member, make_layer

from hpcwrap.image import convert, spool
from hpcwrap.image.convert import _Layers
from hpcwrap.image.digest import digest_of, hex_digits
from hpcwrap.image.manifest import Blob, Manifest
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.spool import Spool
from hpcwrap.image.tar import LayerError
from hpcwrap.image.transport import Download, Resolved

LAYERS = [make_layer([Member(name, content=os.urandom(3_000_000))]) for name in "ab"]
BLOBS = [gzip.compress(layer, 1) for layer in LAYERS]
ONE, TWO = "oci-put-blob1", "oci-put-blob2"
HALF = 1_500_000


@pytest.fixture(autouse=True)
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers work in a directory of their own."""
    monkeypatch.chdir(tmp_path)


def until(happened: Callable[[], Any]) -> None:
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.005)
    pytest.fail("it did not happen")


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def size(of: Spool) -> int:
    return os.fstat(of.file.fileno()).st_size


@pytest.mark.parametrize("blob", [BLOBS[0], LAYERS[0]], ids=["gzip", "plain"])
def test_it_decompresses_what_is_there_and_ends_when_told(tmp_path: Path, blob: bytes) -> None:
    append(tmp_path / ONE, blob[:HALF])
    following = Spool(ONE)
    until(lambda: size(following) > HALF // 2)
    append(tmp_path / ONE, blob[HALF:])
    until(lambda: size(following) > HALF)
    assert not following.ended()
    following.finish()
    until(following.ended)
    assert bytes(following.view()) == LAYERS[0]


def test_a_damaged_blob_is_no_error_before_its_digest_is_right(tmp_path: Path) -> None:
    # zstd ends as soon as it sees the damage, igzip with its input.
    append(tmp_path / ONE, spool.ZSTD_MAGIC + b"damage" * HALF)
    following = Spool(ONE)
    until(lambda: following._child is not None and following._child.poll() is not None)
    assert not following.ended()
    following.finish()
    with pytest.raises(LayerError, match="damaged or ends early"):
        following.ended()


class Written(Download):
    """A download whose files the tests write as skopeo does."""

    def __init__(self, directory: Path) -> None:
        blobs = [Blob(digest_of(blob), len(blob), "") for blob in BLOBS]
        self.resolved = Resolved(digest_of(b""), Manifest(Blob(digest_of(b""), 0, ""), (*blobs,)))
        self.reference = parse_reference("registry.example/a:1")
        self.directory = self._blobs = str(directory)

    def ended(self) -> bool:
        return False

    def notice(self) -> str:
        return ""


@pytest.fixture(name="layers")
def make_layers(tmp_path: Path) -> _Layers:
    return _Layers(Written(tmp_path), lambda _: None)


def indexed(layers: _Layers) -> List[str]:
    """The layers whose index is whole."""
    return [digest for digest, each in layers.taken.items() if each.indexed]


def contents(layers: _Layers) -> List[bytes]:
    """The tar streams, when all are there."""
    until(lambda: layers.coming() and len(indexed(layers)) == len(BLOBS))
    return [bytes(layer.view) for layer in layers.in_order()]


def finish(directory: Path, name: str, number: int) -> None:
    (directory / name).rename(directory / hex_digits(digest_of(BLOBS[number])))


def test_layers_side_by_side_are_told_apart_by_their_inodes(
    tmp_path: Path, layers: _Layers
) -> None:
    for name, blob in ((ONE, BLOBS[1]), (TWO, BLOBS[0])):
        append(tmp_path / name, blob[:HALF])
    layers.coming()
    following = {id(each) for each in layers.following.values()}
    assert len(following) == 2
    for name, number in ((ONE, 1), (TWO, 0)):
        append(tmp_path / name, BLOBS[number][HALF:])
        finish(tmp_path, name, number)
    assert contents(layers) == LAYERS
    assert {id(each) for each in layers.taken.values()} == following


def test_a_layer_that_is_cut_and_comes_again(tmp_path: Path, layers: _Layers) -> None:
    append(tmp_path / ONE, BLOBS[1][:HALF])
    layers.coming()
    (cut,) = layers.following.values()
    (tmp_path / ONE).unlink()
    layers.coming()
    assert layers.following == {}
    assert cut.spool._child is not None
    assert cut.spool._child.returncode is not None
    for number, name in enumerate((TWO, ONE)):
        append(tmp_path / name, BLOBS[number])
        layers.coming()
        finish(tmp_path, name, number)
    assert contents(layers) == LAYERS
    assert layers.following == {}


def test_a_layer_is_none_before_skopeo_names_it(tmp_path: Path, layers: _Layers) -> None:
    for number, name in enumerate((ONE, TWO)):
        append(tmp_path / name, BLOBS[number])
    layers.coming()
    until(lambda: all(size(each.spool) > HALF for each in layers.following.values()))
    layers.coming()
    assert layers.taken == {}


def test_a_layer_that_becomes_too_large_is_an_error_at_once(
    tmp_path: Path, layers: _Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MAX_UNPACKED", HALF // 2)
    append(tmp_path / ONE, BLOBS[0][:HALF])
    with pytest.raises(LayerError, match="more than"):
        until(lambda: not layers.coming())


def test_small_layers_are_taken_when_they_are_whole(
    tmp_path: Path, layers: _Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "FOLLOW_FROM", 10_000_000)
    for number, name in enumerate((ONE, TWO)):
        append(tmp_path / name, BLOBS[number])
        layers.coming()
        assert layers.following == {}
        finish(tmp_path, name, number)
    assert contents(layers) == LAYERS
