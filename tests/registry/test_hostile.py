"""Images made to do harm, pulled from a real registry: an error in words, or a harmless image.

Whatever they hold, nothing changes outside of the store, and nothing of other images in it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import pytest
from registries import CONFIG, MANIFEST, Registry
from tars import Member, make_layer
from trees import Tree, mounted, read_tree

from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image import convert, plan
from hpcwrap.image.pull import pull
from hpcwrap.image.store import Image, Store
from hpcwrap.image.worker import MAKE_ROOM

pytestmark = [pytest.mark.registry, pytest.mark.privileged]

HONEST = make_layer([Member("bin/tool", content=b"tool" * 999, mode=0o755), Member("etc", "dir")])
ZEROS = bytes(1 << 20)


class Place(NamedTuple):
    """A store with an image in it, in the middle of files that are not hpcwrap's."""

    root: str
    store: Store
    image: Image


def snapshot(root: str) -> Dict[str, Any]:
    """All that can be seen of files, the time of their last change too."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in ("", *names):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = b""
            if os.path.isfile(path) and not os.path.islink(path):
                content = hashlib.sha256(Path(path).read_bytes()).digest()
            found[path] = (status.st_mode, status.st_uid, status.st_ctime_ns, content)
    return found


@pytest.fixture(name="place")
def make_place(root: str, push: Any) -> Iterator[Place]:
    """Checks afterwards that all around the store is as it was, and the other image too."""
    outside = Path(root, "outside")
    (outside / "etc").mkdir(parents=True)
    os.chmod(outside, 0o777)
    (outside / "etc" / "passwd").write_text("root")
    (outside / "etc" / "link").symlink_to("passwd")
    store = Store(root + "/store")
    place = Place(root, store, pull(push("honest:1", [HONEST]).reference, store).image)
    kept = (place.image.squashfs, store.document_path(place.image.digest))
    before = snapshot(str(outside)), [snapshot_of(path) for path in kept]
    yield place
    assert os.listdir(store.tmp_directory) == []
    assert (snapshot(str(outside)), [snapshot_of(path) for path in kept]) == before
    assert sorted(os.listdir(root)) == ["outside", "store"]


def snapshot_of(path: str) -> Any:
    status = os.stat(path)
    return status.st_mode, status.st_ctime_ns, Path(path).read_bytes()


def tree_of(place: Place, reference: str, tmp_path: Path) -> Tree:
    image = pull(reference, place.store).image
    with mounted(image.squashfs, tmp_path / "mnt") as root:
        return read_tree(root)[0]


def kinds_of(tree: Tree) -> Dict[str, str]:
    return {
        os.fsdecode(name): file.content.decode() if file.kind == "symlink" else file.kind
        for name, file in tree.items()
    }


OUT = "../" * 30
DEEP = "/".join("d" * 2040)
HARMLESS: Dict[str, Any] = {
    "absolute": (
        [Member("/etc/passwd", content=b"x"), Member("//tmp//a")],
        {"etc": "dir", "etc/passwd": "file", "tmp": "dir", "tmp/a": "file"},
    ),
    "dot-dot": (
        [Member(OUT + "etc/passwd", content=b"x"), Member("a/../../../etc/b")],
        {"etc": "dir", "etc/passwd": "file", "etc/b": "file"},
    ),
    "links-out": (
        [
            Member("l", "symlink", link=OUT + "tmp"),
            Member("l/x"),
            Member("m", "symlink", link="/"),
            Member("m/outside", content=b"x"),
        ],
        {"l": OUT + "tmp", "tmp": "dir", "tmp/x": "file", "m": "/", "outside": "file"},
    ),
    "whiteouts-out": (
        [Member(OUT + "outside/.wh.etc"), Member("l", "symlink", link=OUT), Member("l/.wh.etc")],
        {"l": OUT},
    ),
    "devices": (
        [Member("dev/sda", "device", mode=0o666), Member("dev/x", "link", link="dev/sda")],
        {"dev": "dir"},
    ),
    "setuid": ([Member("su", mode=0o6755, content=b"x")], {"su": "file"}),
    "loops": (
        [Member("a", "symlink", link="b"), Member("b", "symlink", link="a"), Member("a/.wh.x")],
        {"a": "b", "b": "a"},
    ),
    "duplicates": (
        [Member("a", content=b"1"), Member("a", "dir"), Member("a/b"), Member("a", content=b"2")],
        {"a": "file"},
    ),
    "odd-names": (
        [Member("a\nb\x1b[31m"), Member("-rf"), Member("\udcff\udcfe"), Member(" ")],
        {"a\nb\x1b[31m": "file", "-rf": "file", "\udcff\udcfe": "file", " ": "file"},
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_images(push: Any, place: Place, tmp_path: Path, name: str) -> None:
    members, expected = HARMLESS[name]
    tree = tree_of(place, push(f"harmless/{name}:1", [make_layer(members)]).reference, tmp_path)
    assert kinds_of(tree) == expected
    assert all(file.mode & 0o6000 == 0 for file in tree.values())


def test_directories_as_deep_as_a_name_can_be(push: Any, place: Place, tmp_path: Path) -> None:
    layers = [make_layer([Member(DEEP + "/file", content=b"x")])]
    image = pull(push("deep:1", layers).reference, place.store).image
    with mounted(image.squashfs, tmp_path / "mnt") as root:
        names = subprocess.run(["find", root, "-printf", "%P\\n"], check=True, capture_output=True)
    assert names.stdout.decode().splitlines()[-1] == DEEP + "/file"


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, check=True, capture_output=True).stdout


def tar_of_zeros(size: int) -> bytes:
    """The header of a file, without its body."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


COMPRESSED = {"gzip": lambda data: gzip.compress(data, 1), "zstd": zstd}
WHOLE = make_layer([Member("a", content=os.urandom(200_000)), Member("b", content=b"b" * 9999)])
BROKEN: Dict[str, Any] = {
    "no-tar": (b"#!/bin/sh\nrm -rf /\n" * 99, "layer 2 of 2 has a header"),
    "a-megabyte-of-text": (b"text" * (1 << 18), "layer 2 of 2 has a header"),
    "short": (WHOLE[:90_000], "layer 2 of 2 ends early, in a"),
    "half-a-header": (WHOLE[:100], "layer 2 of 2 ends early, in a header"),
    "hard-link-out": (
        make_layer([Member("x", "link", link=OUT + "outside/etc/passwd")]),
        "layer 2 of 2 has the hard link x to outside/etc/passwd, which is not there",
    ),
    "file-below-file": (
        make_layer([Member("bin/tool/x")]),
        "layer 2 of 2 has files below bin/tool, which is no directory",
    ),
    "loop": (
        make_layer([Member("a", "symlink", link="a"), Member("a/b")]),
        "layer 2 of 2 has a loop of symbolic links at a",
    ),
    "too-deep": (make_layer([Member("d/" * 10_000 + "x")]), "layer 2 of 2 has a name that is too"),
    "too-deep-by-links": (
        make_layer(
            [
                Member(DEEP + "/e", "dir"),
                Member("s", "symlink", link=DEEP),
                Member("s/" + "f/" * 20 + "x"),
            ]
        ),
        "nested too deeply: d/d/",
    ),
    "terminal-codes": (
        make_layer([Member("\x1b]0;title\7/x" * 30, "link", link="\n\n")]),
        r"\\x1b",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_layers(push: Any, place: Place, name: str) -> None:
    layer, reason = BROKEN[name]
    reference = push(f"broken/{name}:1", [HONEST, layer]).reference
    with pytest.raises(UserError, match=reason) as caught:
        pull(reference, place.store)
    assert caught.value.message.startswith(f"the image {reference} is broken: ")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("damage", ["cut", "flipped", "only-magic"])
def test_damaged_streams(push: Any, place: Place, kind: str, damage: str) -> None:
    blob = bytearray(COMPRESSED[kind](WHOLE))
    if damage == "flipped":
        blob[len(blob) // 2] ^= 0xFF
    del blob[{"cut": len(blob) // 2, "flipped": len(blob), "only-magic": 4}[damage] :]
    with pytest.raises(UserError, match="layer 2 of 2"):
        pull(push(f"damaged/{kind}-{damage}:1", [HONEST, bytes(blob)]).reference, place.store)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_zeros_become_a_small_image(push: Any, place: Place, tmp_path: Path, kind: str) -> None:
    size = 300 << 20
    blob = COMPRESSED[kind](tar_of_zeros(size) + ZEROS * 300 + bytes(1024))
    reference = push(f"zeros/{kind}:1", [blob]).reference
    tree = tree_of(place, reference, tmp_path)
    assert tree[b"zeros"].size == size
    image = place.store.find(reference)
    assert image is not None
    assert os.path.getsize(image.squashfs) < 1 << 20


@pytest.mark.parametrize("kind", COMPRESSED)
def test_hot_air_is_stopped_early(
    push: Any, place: Place, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FREE", 64 << 20)
    # A tebibyte and more by its header; the frames of both formats may follow one another.
    frame = COMPRESSED[kind](ZEROS * 64)
    blob = COMPRESSED[kind](tar_of_zeros(3 << 40)) + frame * 40
    with pytest.raises(UserError, match=r"its \d+ bytes become \d+ or more when unpacked"):
        pull(push(f"air/{kind}:1", [blob]).reference, place.store)


def test_a_sparse_file_of_nothing_is_stopped_early(push: Any, place: Place) -> None:
    pax = {"GNU.sparse.size": str(1 << 39), "GNU.sparse.map": "0,1", "GNU.sparse.name": "a"}
    layers = [make_layer([Member("a", content=b"x", pax=pax)], tarfile.PAX_FORMAT)]
    with pytest.raises(UserError, match="when unpacked"):
        pull(push("sparse:1", layers).reference, place.store)


def test_more_names_than_memory(push: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "MAX_INDEX", 1 << 20)
    many = make_layer([Member(f"name-{number}") for number in range(4000)])
    layers = [many, make_layer([Member(f"other-{number}") for number in range(4000)])]
    with pytest.raises(UserError, match="has too many files"):
        pull(push("many:1", layers).reference, place.store)


class Hand:
    """Puts a manifest into the registry that no tool would write."""

    def __init__(self, registry: Registry, repository: str) -> None:
        self.url = f"http://{registry.host}/v2/{repository}"
        self.reference = f"{registry.host}/{repository}:1"

    def put(self, layers: Sequence[Dict[str, Any]], config: Dict[str, Any]) -> None:
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers, "config": config}
        request = urllib.request.Request(
            f"{self.url}/manifests/1", json.dumps(document).encode(), {"Content-Type": MANIFEST}
        )
        request.method = "PUT"
        with urllib.request.urlopen(request):
            pass

    def get(self) -> Dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/manifests/1", headers={"Accept": MANIFEST})
        with urllib.request.urlopen(request) as answer:
            found: Dict[str, Any] = json.load(answer)
        return found


@pytest.mark.parametrize("size", [0, 5, 1 << 40, -1])
def test_manifests_that_lie_about_sizes(
    push: Any, place: Place, registry: Registry, size: int, tmp_path: Path
) -> None:
    push(f"lie{size & 0xFF}/a:1", [HONEST])
    hand = Hand(registry, f"lie{size & 0xFF}/a")
    document = hand.get()
    hand.put([{**document["layers"][0], "size": size}], document["config"])
    if size < 0:
        with pytest.raises(UserError, match="has a manifest in which layer 1 is missing"):
            pull(hand.reference, place.store)
    elif size == 1 << 40:
        with pytest.raises(SiteError, match=r"the store is full: it has no room for 1\.1 TB"):
            pull(hand.reference, place.store)
    else:
        # skopeo compares digests: what is less than it was said to be is what it is.
        assert "bin/tool" in kinds_of(tree_of(place, hand.reference, tmp_path))


def test_the_same_layer_many_times(push: Any, place: Place, registry: Registry) -> None:
    push("same/a:1", [HONEST])
    hand = Hand(registry, "same/a")
    document = hand.get()
    hand.put(document["layers"] * 50, document["config"])
    assert pull(hand.reference, place.store).new
    hand.put(document["layers"] * 1001, document["config"])
    with pytest.raises(UserError, match="too many"):
        pull(hand.reference, place.store)


def test_a_configuration_that_is_a_layer(push: Any, place: Place, registry: Registry) -> None:
    push("config/a:1", [HONEST])
    hand = Hand(registry, "config/a")
    document = hand.get()
    blob = document["layers"][0]
    hand.put(document["layers"], {**blob, "mediaType": CONFIG})
    with pytest.raises(HpcwrapError, match=hand.reference):
        pull(hand.reference, place.store)


def test_127_layers_and_empty_ones(push: Any, place: Place, tmp_path: Path) -> None:
    layers: List[bytes] = [make_layer([Member(f"d/{n}", content=b"%d" % n)]) for n in range(125)]
    layers += [make_layer([]), b""]
    tree = tree_of(place, push("layers:1", layers).reference, tmp_path)
    assert len(tree) == 126


@pytest.fixture(name="small")
def make_small_store(root: str) -> Iterator[Store]:
    """A store on a file system of 24 MiB."""
    options = "size=24m,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", root], check=True)
    try:
        yield Store(f"{root}/store")
    finally:
        subprocess.run(["umount", root], check=True)


@pytest.mark.parametrize(
    ("compressed", "zeros"),
    [(30 << 20, 0), (0, 30 << 20), (14 << 20, 0)],
    ids=["download", "unpack", "convert"],
)
def test_a_store_that_becomes_full(
    push: Any, small: Store, compressed: int, zeros: int, request: pytest.FixtureRequest
) -> None:
    content = os.urandom(compressed) + bytes(zeros)
    layers = [gzip.compress(make_layer([Member("big", content=content)]), 1)]
    reference = push(f"full/{request.node.callspec.id}:1", layers).reference
    with pytest.raises(SiteError, match="the store is full") as caught:
        pull(reference, small)
    assert caught.value.hint == MAKE_ROOM
    assert os.listdir(small.tmp_directory) == []
    assert small.images() == ([], [])
