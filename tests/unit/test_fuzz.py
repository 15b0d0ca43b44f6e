"""Parsers of foreign bytes on whatever chance brings: they know no error but their own.

A run takes some 20 s; HPCWRAP_FUZZ=50 looks fifty times as far.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from typing import Any, Callable, List, Sequence, Tuple

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tars import Member, make_layer, plan_of, stream_of

from hpcwrap.errors import UserError
from hpcwrap.image.layer import Indexer, Layer, index_layer
from hpcwrap.image.manifest import (
    choose_instance,
    is_index,
    load_json,
    parse_document,
    parse_manifest,
)
from hpcwrap.image.pax import (
    apply_records,
    is_sparse,
    parse_pax,
    pax_sparse,
    user_attributes,
)
from hpcwrap.image.store import parse_config
from hpcwrap.image.tar import BLOCK, FILE, Fields, LayerError

TIMES = int(os.environ.get("HPCWRAP_FUZZ", "1"))


def looking(examples: int) -> Any:
    """How far a test looks."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(
        max_examples=examples * TIMES, suppress_health_check=checks, report_multiple_bugs=False
    )


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}
SPARSE["GNU.sparse.realsize"] = "5000"
MEMBERS = [
    Member("d", "dir", mode=0o755),
    Member("d/file", content=b"x" * 700, uid=3_000_000, uname="games"),
    Member("x" * 120, content=b"long"),
    Member("l", "symlink", link="d"),
    Member("l/hard", "link", link="d/file"),
    Member("dev", "device"),
    Member("d/.wh.gone"),
    Member("times", content=b"y", mtime=1_600_000_000.25),
    Member("tags", pax={"SCHILY.xattr.user.a": "b", "LIBARCHIVE.xattr.user.c": "AAAA"}),
    Member("s", content=b"1\n100\n9\n".ljust(BLOCK, b"\0") + b"z" * 9, pax=SPARSE),
    Member("end", content=b"end"),
]
STREAMS = [make_layer(MEMBERS, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
FIELDS = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8))
"""Offset and length of a header's fields: junk there reaches further than junk anywhere."""

JUNK = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from(
        [b"\0" * 12, b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\7", b"77777777777", b"../../", b"-1"]
        + [bytes((kind,)) for kind in b"0123456789LKxXgSVM"]
    ),
)


CHANGES = st.sampled_from(("field", "field", "field", "byte", "drop", "repeat", "cut"))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A stream with changed fields, lost, repeated or foreign blocks; its checksums fit mostly."""
    stream = bytearray(draw(st.sampled_from(STREAMS)))
    for _ in range(draw(st.integers(1, 4))):
        block = BLOCK * draw(st.integers(0, len(stream) // BLOCK - 1))
        change = draw(CHANGES)
        if change == "drop":
            del stream[block : block + BLOCK]
        elif change == "repeat":
            stream[block:block] = stream[block : block + BLOCK * draw(st.integers(1, 3))]
        elif change == "cut":
            del stream[block + draw(st.integers(0, BLOCK)) :]
        else:
            offset, length = draw(st.sampled_from(FIELDS)) if change == "field" else (0, BLOCK)
            start = block + draw(st.integers(offset, offset + length - 1)) * (change == "byte")
            start = block + offset if change == "field" else start
            junk = draw(JUNK)[:length]
            stream[start : start + len(junk)] = junk
            if draw(st.booleans()) or change == "field":
                mend(stream, block)
        assume(len(stream) >= BLOCK)
    return bytes(stream)


def mend(stream: bytearray, block: int) -> None:
    """Give a header the checksum that it needs."""
    stream[block + 148 : block + 156] = b" " * 8
    stream[block + 148 : block + 156] = b"%06o\0 " % sum(stream[block : block + BLOCK])


def check_words(error: UserError) -> None:
    """What an error says goes to a terminal."""
    assert (error.message + error.hint).isprintable()


def whole_or_refused(layer: bytes) -> None:
    """A layer is refused in words, or becomes a stream that is as long as the plan says."""
    try:
        plan = plan_of([STREAMS[0], layer])
    except LayerError as error:
        check_words(error)
        return
    if plan.size < 1 << 22:
        stream = stream_of(plan, [STREAMS[0], layer])
        assert len(stream) == plan.size
        with tarfile.open(fileobj=io.BytesIO(stream), errorlevel=2) as archive:
            assert sum(1 for _ in archive) == plan.entries


@looking(700)
@given(damaged())
def test_damaged_tar_streams(layer: bytes) -> None:
    whole_or_refused(layer)


def columns(layer: Layer) -> Tuple[object, ...]:
    """All that an index says."""
    names = [name for name in Layer.__slots__ if name not in ("view", "trimmed")]
    return tuple(getattr(layer, name) for name in names)


def told(index: Callable[[], Layer]) -> Tuple[object, ...]:
    """All that an index says, or why there is none."""
    try:
        return columns(index())
    except LayerError as error:
        return (error.message,)


def index_in_parts(stream: bytes, cuts: Sequence[int]) -> Layer:
    """The index of a stream that is seen up to each cut in turn, and then whole."""
    indexer = Indexer()
    for cut in cuts:
        indexer.extend(memoryview(stream[:cut]), whole=False)
    indexer.extend(memoryview(stream), whole=True)
    return indexer.layer


@looking(700)
@given(st.one_of(st.sampled_from(STREAMS), damaged()), st.data())
def test_a_stream_that_comes_in_parts_has_the_index_of_the_whole(
    stream: bytes, data: st.DataObject
) -> None:
    cuts: List[int] = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    assert told(lambda: index_in_parts(stream, cuts)) == told(
        lambda: index_layer(memoryview(stream))
    )


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_may_be_cut_anywhere(stream: bytes) -> None:
    whole = columns(index_layer(memoryview(stream)))
    for cut in range(0, len(stream), 128):
        assert columns(index_in_parts(stream, [cut])) == whole


@looking(300)
@given(st.binary(max_size=3000))
@example(b"\0" * 512 + b"x")
@example(b"\x1f\x8b" * 300)
def test_bytes_that_are_no_tar_stream(layer: bytes) -> None:
    whole_or_refused(layer)


def half_sparse(info: tarfile.TarInfo) -> bool:
    """Whether a word of a sparse file's map is damaged: tarfile takes the size, and no map."""
    return info.sparse is None and any(key.startswith("GNU.sparse.") for key in info.pax_headers)


@looking(500)
@given(damaged())
def test_what_tarfile_reads_we_read_alike(layer: bytes) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:", errorlevel=2) as archive:
            theirs = {info.offset_data: info for info in archive.getmembers() if info.isreg()}
        ours = index_layer(memoryview(layer))
    except (tarfile.TarError, ValueError, IndexError, KeyError, LayerError):
        # Each of them takes things that the other one does not; tarfile has no error of its own.
        return
    for index in range(len(ours)):
        entry = ours.entry(index)
        info = theirs.get(entry.data)
        if entry.kind == FILE and info is not None and not half_sparse(info):
            assert (info.size, info.uid) == (entry.fields.size, entry.fields.uid)
            # Of several long names tarfile takes the first, an empty one takes none back, and it
            # sees a prefix in GNU's headers, which have times there.
            name = os.path.basename(os.path.normpath(os.fsencode(info.name)))
            if name and entry.data - entry.start <= 3 * BLOCK:
                assert name in (b".", b"..", os.path.basename(entry.path))


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs mksquashfs (squashfs-tools)")
@looking(40)
@given(damaged())
def test_what_comes_out_mksquashfs_takes(layer: bytes) -> None:
    try:
        plan = plan_of([STREAMS[0], layer])
    except LayerError:
        return
    with tempfile.TemporaryDirectory() as directory:
        output = f"{directory}/image"
        argv = ["mksquashfs", "-", output, "-tar", "-xattrs", "-quiet", "-no-progress"]
        stream = stream_of(plan, [STREAMS[0], layer])
        made = subprocess.run(argv, input=stream, capture_output=True, check=False)
        assert (made.returncode, made.stderr) == (0, b"")
        listed = subprocess.run(["unsquashfs", "-l", output], capture_output=True, check=True)
    assert listed.stdout.count(b"squashfs-root/") == plan.entries


KEYWORDS = st.sampled_from(
    [b"path", b"size", b"uid", b"mtime", b"SCHILY.xattr.user.a", b"LIBARCHIVE.xattr.user.%41"]
    + [b"GNU.sparse." + end for end in (b"map", b"offset", b"numbytes", b"major", b"size")]
)
NUMBERS = st.integers(-(10**25), 10**25).map(lambda number: b"%d" % number)
VALUES = st.one_of(st.binary(max_size=20), NUMBERS, st.lists(NUMBERS, max_size=6).map(b",".join))


@st.composite
def pax_headers(draw: st.DrawFn) -> bytes:
    """Records, most of them with the length that they have."""
    data = b""
    for _ in range(draw(st.integers(0, 5))):
        record = b" %s=%s\n" % (draw(KEYWORDS), draw(VALUES))
        length = len(record) + len(str(len(record) + 2)) + draw(st.sampled_from((0, 0, 0, 1, -3)))
        data += b"%d" % length + record
    return data


@looking(500)
@given(st.one_of(pax_headers(), st.binary(max_size=200)), st.binary(max_size=100))
@example(b"0 a=b\n", b"")
@example(b"-9 a=b\n", b"")
@example(b"\xb2 a=b\n", b"")
def test_pax_headers(data: bytes, body: bytes) -> None:
    try:
        records = parse_pax(data)
        user_attributes(records)
        apply_records(Fields(0o644, 0, 0, 0, 0), records)
        if is_sparse(records):
            pax_sparse(records, body)
    except LayerError:
        return


DIGESTS = st.sampled_from(["sha256:" + "ab" * 32, "sha256:../../etc", "sha256:", "", 7, None])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.text(max_size=4),
                st.sampled_from(["os", "architecture", "platform", "digest", "size", "mediaType"]),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
BLOBS = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"digest": DIGESTS, "size": st.one_of(st.integers(), JSON)},
        optional={"mediaType": JSON, "platform": JSON},
    ),
)
DOCUMENTS = st.fixed_dictionaries(
    {"schemaVersion": st.sampled_from([2, 2, 2, 1, "2", None])},
    optional={
        "manifests": st.one_of(JSON, st.lists(BLOBS, max_size=4)),
        "layers": st.one_of(JSON, st.lists(BLOBS, max_size=4)),
        "config": BLOBS,
        "mediaType": JSON,
    },
)
DEEP = b"[" * 100_000


@looking(500)
@given(st.one_of(DOCUMENTS, JSON).map(lambda document: json.dumps(document).encode()))
@example(DEEP)
@example(b'{"a":' * 100_000)
@example(b'{"schemaVersion": 2, "manifests": [{"platform": "linux"}]}')
@example(b'{"schemaVersion": 2, "manifests": [{"platform": {"os": ["\\u001b]0;x"]}}, 7]}')
@example(b'{"schemaVersion": 2, "layers": [], "config": {"size": true, "digest": "sha256:"}}')
@example(b"\xff\xfe")
@example(b"1" * 5000)
def test_manifests(content: bytes) -> None:
    try:
        document = parse_document(content)
        if is_index(document):
            choose_instance(document, "x86_64")
        else:
            manifest = parse_manifest(document)
            assert all(blob.size >= 0 for blob in manifest.layers)
    except UserError as error:
        check_words(error)


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "Env": st.one_of(JSON, st.lists(st.text(max_size=9), max_size=3)),
        "Cmd": JSON,
        "Entrypoint": JSON,
        "WorkingDir": JSON,
        "User": JSON,
        "Labels": st.one_of(JSON, st.dictionaries(st.text(max_size=5), JSON, max_size=3)),
    },
)


@looking(500)
@given(st.one_of(CONFIGS, JSON))
@example("text")
@example([1])
@example({"Env": ["A=\ud800"]})
@example({"Labels": {"a": "\0"}})
def test_image_configurations(config: Any) -> None:
    try:
        image = parse_config(config)
    except ValueError:
        return
    for text in (*image.env, image.workdir, image.user, *image.cmd, *image.labels.values()):
        assert os.fsencode(text).find(b"\0") < 0


def test_json_that_is_nested_too_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested"):
        load_json(DEEP)


@pytest.mark.parametrize("value", [0, 0x20, 0x2F, 0x37, 0x78, 0x80, 0xFF])
def test_every_byte_of_a_header_may_be_any_other(value: int) -> None:
    stream = make_layer([Member("d/a", content=b"x"), Member("b", "symlink", link="a")])
    for offset in range(BLOCK):
        layer = bytearray(stream)
        layer[offset] = value
        mend(layer, 0)
        whole_or_refused(bytes(layer))
