"""The squashfs that comes out: made by the real mksquashfs, read back by the real unsquashfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import pytest
from tars import Member, make_layer, plan_of

from hpcwrap.errors import SiteError
from hpcwrap.image import checksum, squashfs
from hpcwrap.image.checksum import EarlyPieces, Pieces
from hpcwrap.image.download import Format
from hpcwrap.image.plan import Plan
from hpcwrap.image.spool import Spool, decompressor
from hpcwrap.image.squashfs import _flushed, write_squashfs
from hpcwrap.image.tar import LayerError

pytestmark = pytest.mark.skipif(
    not shutil.which("mksquashfs"), reason="needs mksquashfs (squashfs-tools)"
)

STACK = [
    [
        Member("./", "dir", mode=0o750, uid=12, gid=13),
        Member("./bin", "symlink", link="usr/bin"),
        Member("./usr/", "dir", mode=0o755),
        Member("./usr/bin/", "dir", mode=0o755, uid=5, uname="games"),
        Member("./usr/bin/su", content=b"su" * 300, mode=0o4755),
        Member("./usr/bin/perl", content=b"perl" * 400, mode=0o755),
        Member("./usr/bin/perl5", "link", link="./usr/bin/perl"),
        Member("./dev/null", "device"),
        Member("./run/pipe", "fifo", mode=0o600),
        Member("./gone", content=b"gone"),
        Member("./etc/passwd", content=b"root"),
    ],
    [
        Member(".wh.gone"),
        Member("bin/new", content=b"new", uid=3_000_000, gid=4_000_000),
        Member("usr/bin/.wh.perl"),
        Member("far/" + "n" * 200, content=b"far" * 100_000),
        Member("up", "symlink", link="../" * 50 + "x"),
        Member("etc/passwd", content=b"root:x", mode=0o600),
        Member("etc", "dir", mode=0o700),
    ],
]


ZSTD = Format()


@pytest.fixture(autouse=True)
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers work in a directory of their own: temporary files go to where they are."""
    monkeypatch.chdir(tmp_path)


def convert(layers: Sequence[bytes], output: Path, form: Format = ZSTD) -> Plan:
    return convert_early(layers, output, form)[0]


def convert_early(
    layers: Sequence[bytes], output: Path, form: Format = ZSTD
) -> Tuple[Plan, Pieces]:
    plan = plan_of(layers)
    seen: List[int] = []
    with ExitStack() as stack:
        spools = [stack.enter_context(tempfile.TemporaryFile()) for _ in layers]
        for spool, layer in zip(spools, layers):
            spool.write(layer)
            spool.flush()
        pieces = write_squashfs(plan, spools, str(output), form, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == plan.size
    return plan, pieces


def listing(squashfs: Path) -> Dict[str, str]:
    """Path → what unsquashfs says of it."""
    text = subprocess.run(
        ["unsquashfs", "-lln", "-UTC", str(squashfs)], check=True, capture_output=True, text=True
    ).stdout
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 6:
            name = words[5].replace("squashfs-root", "", 1) or "/"
            found[name] = " ".join([*words[:2], *words[6:]])
    return found


def cat(squashfs: Path, name: str) -> bytes:
    return subprocess.run(
        ["unsquashfs", "-cat", str(squashfs), name], check=True, capture_output=True
    ).stdout


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_squashfs_holds_the_merged_layers(tmp_path: Path, form: int) -> None:
    output = tmp_path / "image.sqsh"
    convert([make_layer(layer, form) for layer in STACK], output)
    found = listing(output)
    root = found.pop("/")
    assert root.startswith("drwxr-x---")
    assert found == {
        "/bin": "lrwxrwxrwx 0/0 -> usr/bin",
        "/dev": "drwxr-xr-x 0/0",
        "/etc": "drwx------ 0/0",
        "/etc/passwd": "-rw------- 0/0",
        "/far": "drwxr-xr-x 0/0",
        "/far/" + "n" * 200: "-rw-r--r-- 0/0",
        "/run": "drwxr-xr-x 0/0",
        "/run/pipe": "prw------- 0/0",
        "/up": f"lrwxrwxrwx 0/0 -> {'../' * 50}x",
        "/usr": "drwxr-xr-x 0/0",
        "/usr/bin": "drwxr-xr-x 5/0",
        "/usr/bin/new": "-rw-r--r-- 3000000/4000000",
        "/usr/bin/perl5": "-rwxr-xr-x 0/0",
        "/usr/bin/su": "-rwxr-xr-x 0/0",
    }
    assert cat(output, "usr/bin/perl5") == b"perl" * 400
    assert cat(output, "etc/passwd") == b"root:x"
    assert cat(output, "far/" + "n" * 200) == b"far" * 100_000


def test_names_of_one_file_share_an_inode(tmp_path: Path) -> None:
    layer = make_layer([Member("a", content=b"x" * 9000), Member("b", "link", link="a")])
    output = tmp_path / "image.sqsh"
    convert([layer], output)
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(tmp_path / "out"), str(output)], check=True)
    assert (tmp_path / "out" / "a").stat().st_ino == (tmp_path / "out" / "b").stat().st_ino


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    layers = [make_layer(layer) for layer in STACK]
    convert(layers, tmp_path / "one")
    time.sleep(1.1)  # squashfs times have a resolution of 1 s
    convert(layers, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("form", [Format("gzip", 1), Format("lz4", 1), Format("xz", 1)])
def test_other_compressions(tmp_path: Path, form: Format) -> None:
    output = tmp_path / "image.sqsh"
    convert([make_layer([Member("a", content=b"a" * 9999)])], output, form)
    assert cat(output, "a") == b"a" * 9999


def test_an_empty_image(tmp_path: Path) -> None:
    convert([b""], tmp_path / "image.sqsh")
    assert set(listing(tmp_path / "image.sqsh")) == {"/"}


def test_mksquashfs_that_fails_is_the_sites_error(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot convert the image: mksquashfs says"):
        convert([make_layer([Member("a")])], tmp_path / "no" / "image.sqsh")


def test_what_the_disk_says_is_told_although_another_fsync_follows() -> None:
    def write_and_wait() -> None:
        others = set(threading.enumerate())
        with _flushed("/dev/full", EarlyPieces(0, 0)):
            # fdatasync(2) of a device is EINVAL: the thread ends with that.
            for thread in set(threading.enumerate()) - others:
                thread.join()

    with pytest.raises(SiteError, match="cannot convert the image: the store says"):
        write_and_wait()


def test_pieces_of_the_checksum_are_right_before_the_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mksquashfs goes back when it finds that a file is the same as an earlier one."""
    monkeypatch.setattr(checksum, "PIECE", 1 << 16)
    monkeypatch.setattr(squashfs, "EarlyPieces", lambda largest, _: EarlyPieces(largest, 0))
    monkeypatch.setattr(squashfs, "FLUSH_EVERY", 0.0005)
    contents = [os.urandom(3 << 20) for _ in range(8)]
    members = [Member(f"{n}", content=contents[n % 8]) for n in range(32)]
    _, pieces = convert_early([make_layer(members)], tmp_path / "image.sqsh")
    with (tmp_path / "image.sqsh").open("rb") as file:
        again = {start: checksum.hash_piece(file.fileno(), start) for start in pieces}
        known = checksum.checksum(file.fileno(), known=pieces)
        assert (pieces, known) == (again, checksum.checksum(file.fileno()))
    assert pieces


CONTENT = make_layer([Member("a", content=os.urandom(300_000))])
COMPRESS = {
    "gzip": ["gzip", "-c"],
    "zstd": ["zstd", "-qc"],
    "plain": ["cat"],
}


def spooled(blob: bytes, directory: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.chdir(directory)
    (directory / "blob").write_bytes(blob)
    spool = Spool(str(directory / "blob"))
    spool.finish()
    while not spool.ended():
        time.sleep(0.005)
    return bytes(spool.view())


@pytest.mark.parametrize("kind", sorted(COMPRESS))
def test_layers_are_decompressed_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # In two members, as tools that compress in parallel or seekably write them.
    halves = (CONTENT[:100_000], CONTENT[100_000:])
    blob = b"".join(
        subprocess.run(COMPRESS[kind], input=half, check=True, capture_output=True).stdout
        for half in halves
    )
    assert spooled(blob, tmp_path, monkeypatch) == CONTENT
    assert sorted(os.listdir(tmp_path)) == ["blob"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_layer_that_is_cut_or_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    blob = subprocess.run(COMPRESS[kind], input=CONTENT, check=True, capture_output=True).stdout
    damaged = bytearray(blob)
    damaged[1000:1100] = bytes(100)
    for bad in (blob[:-10], blob[: len(blob) // 2], bytes(damaged)):
        with pytest.raises(LayerError, match="damaged or ends early"):
            spooled(bad, tmp_path, monkeypatch)


def test_plain_tar_needs_no_program() -> None:
    assert decompressor(b"usr/") is None
    assert decompressor(b"") is None
