"""Reading tar headers: every format that layers come in, and every way in which they break."""

from __future__ import annotations

import io
import os
import re
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


def paths(layer: Layer) -> List[bytes]:
    return [layer.path(number) for number in range(len(layer))]


@pytest.mark.parametrize("form", FORMATS)
def test_plain_entries_are_copied_as_they_are(form: int) -> None:
    names = ("a", "./b", ".hidden", "d/..e", "usr/lib/" + "p/" * 50 + "n" * 90)
    layer = index(make_layer([Member(name, content=b"123") for name in names[:4]], form))
    assert paths(layer) == [b"a", b"b", b".hidden", b"d/..e"]
    assert bytes(layer.kinds) == b"0000"


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
    layer = index(make_layer([Member(name)], tarfile.USTAR_FORMAT))
    assert paths(layer) == [name.encode()]
    assert bytes(layer.kinds) == b"0"


def test_pax_records_overrule_the_header_and_global_ones_stay() -> None:
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "77"}
    ) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"path": "real/name", "gid": "88", "mtime": "1600000000.9"}
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("b"))
    layer = index(file.getvalue())
    first, second = layer.entry(0), layer.entry(1)
    assert first.path == b"real/name"
    assert (first.fields.uid, first.fields.gid, first.fields.mtime) == (77, 88, 1_600_000_000)
    assert (second.path, second.fields.uid) == (b"b", 77)


def test_a_time_without_fraction_does_not_reach_mksquashfs_as_a_pax_record() -> None:
    # mksquashfs 4.5.1 stops at a pax mtime without a point.
    layer = make_layer([Member("a", content=b"x", pax={"mtime": "1600000000"})], tarfile.PAX_FORMAT)
    stream = stream_of(plan_of([layer]), [layer])
    assert b"mtime=" not in stream


def test_times_with_fractions_cost_no_new_header() -> None:
    pax = {"atime": "1600000001.25", "mtime": "1600000000.5"}
    members = [Member("a", content=b"x", pax=pax), Member("b", mtime=1_600_000_000.25)]
    layer = make_layer(members, tarfile.PAX_FORMAT)
    assert bytes(index(layer).kinds) == b"00"
    stream = stream_of(plan_of([layer]), [layer])
    assert b"time=" not in stream
    assert list(read_stream(stream)[0]) == ["a", "b"]


@pytest.mark.parametrize("told", ["5.5", "-1", "9" * 15, "x"])
def test_a_time_that_differs_from_the_header_counts(told: str) -> None:
    layer = make_layer([Member("a", pax={"mtime": told})], tarfile.PAX_FORMAT)
    if told == "x":
        with pytest.raises(LayerError, match="the number b'x'"):
            index(layer)
    else:
        expected = {"5.5": 5, "-1": 0}.get(told, 2**32 - 1)
        assert index(layer).entry(0).fields.mtime == expected


def test_names_of_users_do_not_reach_mksquashfs() -> None:
    layer = make_layer([Member("a", uid=5, uname="games"), Member("b", uid=0, uname="root")])
    stream = stream_of(plan_of([layer]), [layer])
    assert b"games" not in stream
    assert isinstance(list(plan_of([layer]).segments)[1], Range)


def test_only_attributes_of_users_stay() -> None:
    pax = {"SCHILY.xattr.security.capability": "\x01\x02", "SCHILY.xattr.trusted.x": "y"}
    pax.update({"SCHILY.xattr.user.a": "b=\nc", "LIBARCHIVE.xattr.user.d%C3%A9": "AAH/"})
    pax.update({"LIBARCHIVE.xattr.user.a": "eA", "LIBARCHIVE.xattr.user.x": "no base 64"})
    pax.update({"SCHILY.xattr.user.long": "x" * 65537, "SCHILY.xattr.user." + "n" * 251: "x"})
    pax.update({"SCHILY.xattr.user.empty": "", "SCHILY.xattr.user.": "x"})
    layer = make_layer([Member("ping", content=b"elf", pax=pax)], tarfile.PAX_FORMAT)
    plan = plan_of([layer])
    stream = stream_of(plan, [layer])
    assert plan.tagged
    assert len(stream) == plan.size
    assert re.findall(rb"xattr\.([^=]*)=(.*?)(?=\n\d+ |\n\0)", stream, re.DOTALL) == [
        (b"user.a", b"b=\nc"),
        ("user.dé".encode(), b"\0\1\xff"),
        (b"user.empty", b""),
    ]
    assert read_stream(stream)[0]["ping"].content == b"elf"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "link"])
def test_what_can_have_no_attributes_has_none(kind: str) -> None:
    pax = {"SCHILY.xattr.user.a": "b"}
    layer = make_layer([Member("f"), Member("x", kind, link="f", pax=pax)], tarfile.PAX_FORMAT)
    assert b"xattr" not in stream_of(plan_of([layer]), [layer])
    assert not plan_of([layer]).tagged


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
    assert (paths(layer), layer.whiteouts, layer.opaque) == ([], [b"d/a"], [b"d"])


def test_a_stream_without_its_last_zeros_is_whole() -> None:
    layer = make_layer([Member("a", content=b"x" * 512)])
    assert paths(index(layer[:1024])) == [b"a"]
    assert paths(index(b"")) == []


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
