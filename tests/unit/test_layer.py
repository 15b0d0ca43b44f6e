"""Reading tar headers: every format that layers come in, and every way in which they break."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import Member, make_layer, plan_of, read_stream, stream_of

from hpcwrap.image.layer import Layer, index_layer
from hpcwrap.image.plan import Range
from hpcwrap.image.tar import LayerError, clean_path, make_header, read_number, show

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "directory/" * 20 + "x" * 90


def index(layer: bytes) -> Layer:
    return index_layer(memoryview(layer))


@pytest.mark.parametrize("form", FORMATS)
def test_plain_entries_are_copied_as_they_are(form: int) -> None:
    names = ("a", "./b", ".hidden", "d/..e", "usr/lib/" + "p/" * 50 + "n" * 90)
    entries = index(make_layer([Member(name, content=b"123") for name in names[:4]], form)).entries
    assert [entry.path for entry in entries] == [b"a", b"b", b".hidden", b"d/..e"]
    assert all(entry.fields is None for entry in entries)


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize(
    "member",
    [
        Member(LONG, content=b"long name"),
        Member("s", "symlink", link="../" * 60 + "target"),
        Member("owner", uid=3_000_000, gid=4_000_000_000),
        Member("future", mtime=2**32 - 1),
    ],
    ids=lambda member: member.name[:10],
)
def test_what_a_header_cannot_hold_survives(member: Member, form: int) -> None:
    layer = make_layer([member], form)
    (tree, _) = read_stream(stream_of(plan_of([layer]), [layer]))
    found = tree[member.name]
    assert (found.uid, found.gid) == (member.uid, member.gid)
    assert found.content == (member.content or member.link.encode())


def test_a_ustar_prefix_is_part_of_the_name() -> None:
    name = "a/" * 60 + "b"
    layer = make_layer([Member(name)], tarfile.USTAR_FORMAT)
    assert [entry.path.decode() for entry in index(layer).entries] == [name]
    assert index(layer).entries[0].fields is None


def test_pax_records_overrule_the_header_and_global_ones_stay() -> None:
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "77"}
    ) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"path": "real/name", "gid": "88", "mtime": "1600000000.9"}
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("b"))
    first, second = index(file.getvalue()).entries
    assert first.path == b"real/name"
    assert first.fields is not None
    assert second.fields is not None
    assert (first.fields.uid, first.fields.gid, first.fields.mtime) == (77, 88, 1_600_000_000)
    assert (second.path, second.fields.uid) == (b"b", 77)


def test_a_time_without_fraction_does_not_reach_mksquashfs_as_a_pax_record() -> None:
    # mksquashfs 4.5.1 stops at a pax mtime without a point.
    layer = make_layer([Member("a", content=b"x", pax={"mtime": "1600000000"})], tarfile.PAX_FORMAT)
    stream = stream_of(plan_of([layer]), [layer])
    assert b"mtime=" not in stream


def test_names_of_users_do_not_reach_mksquashfs() -> None:
    layer = make_layer([Member("a", uid=5, uname="games"), Member("b", uid=0, uname="root")])
    stream = stream_of(plan_of([layer]), [layer])
    assert b"games" not in stream
    assert isinstance(plan_of([layer]).segments[1], Range)


def test_extended_attributes_are_left_out() -> None:
    record = {"SCHILY.xattr.security.capability": "\x01\x02", "SCHILY.xattr.user.a": "b"}
    layer = make_layer([Member("ping", content=b"elf", pax=record)], tarfile.PAX_FORMAT)
    stream = stream_of(plan_of([layer]), [layer])
    assert b"xattr" not in stream
    assert read_stream(stream)[0]["ping"].content == b"elf"


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
    ids=lambda options: options[-1].strip("-"),
)
@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: List[str], pieces: int) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        for number in range(pieces):
            file.seek(number * 200_000 + 100_000)
            file.write(b"piece %d" % number)
        file.truncate(pieces * 200_000 + 333)
    (tmp_path / "after").write_bytes(b"next")
    layer = subprocess.run(
        ["tar", "-cS", *options, "-C", str(tmp_path), "sparse", "after"],
        check=True,
        capture_output=True,
    ).stdout
    assert len(layer) < pieces * 60_000
    tree, _ = read_stream(stream_of(plan_of([layer]), [layer]))
    assert tree["sparse"].content == sparse.read_bytes()
    assert tree["after"].content == b"next"


def test_markers_are_not_entries() -> None:
    layer = index(
        make_layer([Member("d/.wh.a"), Member("d/.wh..wh..opq"), Member(".wh..wh.plnk/1.2")])
    )
    assert (layer.entries, layer.whiteouts, layer.opaque) == ([], [b"d/a"], [b"d"])


def test_a_stream_without_its_last_zeros_is_whole() -> None:
    layer = make_layer([Member("a", content=b"x" * 512)])
    assert len(index(layer[:1024]).entries) == 1
    assert index(b"").entries == []


@pytest.mark.parametrize(
    ("length", "reason"),
    [(1023, "ends early, in a$"), (600, "ends early, in a$"), (100, "ends early, in a header")],
)
def test_a_stream_that_is_cut(length: int, reason: str) -> None:
    with pytest.raises(LayerError, match=reason):
        index(make_layer([Member("a", content=b"x" * 500)])[:length])


def patched(offset: int, data: bytes, *, checksum: bool = True) -> bytes:
    """A layer of one file whose header is changed."""
    layer = bytearray(make_layer([Member("a", content=b"x")]))
    layer[offset : offset + len(data)] = data
    if checksum:
        layer[148:156] = b" " * 8
        layer[148:156] = b"%06o\0 " % sum(layer[:512])
    return bytes(layer)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (patched(0, b"b", checksum=False), "wrong checksum"),
        (patched(156, b"M"), "unknown type 'M'"),
        (patched(124, b"99999999999"), "the number"),
        (patched(124, b"\xff" * 12), "ends early"),
        (patched(124, b"\x80" + b"\x7f" * 11), "ends early"),
        (patched(108, b"\xff" * 8), "of the owner -1"),
        (patched(156, b"2"), "symbolic link a to nowhere"),
        (patched(156, b"L"), "ends early, after an extended header"),
        (patched(156, b"x"), "pax header"),
        (make_layer([Member("x" * 256)]), "too long"),
        (make_layer([Member("x/" * 2500)]), "too long"),
        (b"\x80" * 2048, "wrong checksum"),
    ],
)
def test_broken_headers(layer: bytes, reason: str) -> None:
    with pytest.raises(LayerError, match=reason):
        index(layer)


def test_an_extended_header_of_two_mebibytes_is_refused() -> None:
    layer = make_layer([Member("a", pax={"comment": "x" * (2 << 20)})], tarfile.PAX_FORMAT)
    with pytest.raises(LayerError, match="extended header of 2097"):
        index(layer)


def test_a_sparse_file_of_an_exbibyte_is_refused() -> None:
    pax = {"GNU.sparse.size": str(1 << 60), "GNU.sparse.map": "0,1", "GNU.sparse.name": "a"}
    layer = make_layer([Member("a", content=b"x", pax=pax)], tarfile.PAX_FORMAT)
    with pytest.raises(LayerError, match="when unpacked"):
        plan_of([layer])


BASE = make_layer(
    [Member("d", "dir"), Member(LONG, content=b"x" * 700), Member("s", "symlink", link="d")],
    tarfile.PAX_FORMAT,
)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=12), st.booleans())
def test_damage_is_told_as_damage(offset: int, junk: bytes, mend: bool) -> None:
    layer = bytearray(BASE)
    layer[offset : offset + len(junk)] = junk
    start = offset - offset % 512
    if mend:
        layer[start + 148 : start + 156] = b" " * 8
        layer[start + 148 : start + 156] = b"%06o\0 " % sum(layer[start : start + 512])
    try:
        plan = plan_of([bytes(layer)])
    except LayerError:
        return
    stream_of(plan, [bytes(layer)])


@settings(deadline=None)
@given(st.integers(0, (1 << 33)), st.integers(0, 0o1777))
def test_our_headers_are_read_by_tarfile(size: int, mode: int) -> None:
    from hpcwrap.image.tar import FILE, Fields

    header = make_header(b"n" * 150, FILE, b"", Fields(mode, 2**31, 9, size, 2**32 - 1))
    with tarfile.open(fileobj=io.BytesIO(header)) as archive:
        info = archive.next()
    assert info is not None
    assert (info.name, info.size, info.mode, info.uid) == ("n" * 150, size, mode, 2**31)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b" 644 \0\0\0", 0o644),
        (b"\0" * 8, 0),
        (b"\x80" + b"\0" * 6 + b"\5", 5),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert read_number(field) == value


def test_paths_and_what_is_shown_of_them() -> None:
    assert clean_path(b"/./a//../b/./c/") == b"b/c"
    assert show(b"a\x1b[31m\xff\n") == "a\\x1b[31m\\xff\\n"
    assert os.path.normpath("/" + "../a") == "/a"
