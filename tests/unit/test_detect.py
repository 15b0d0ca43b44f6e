"""What a file is, by its content alone."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sifs import make_sif, partition
from tars import Member, make_layer

from hpcwrap.errors import UserError
from hpcwrap.image.detect import kind_of

HEX = "0123456789abcdef" * 4


def tar_of(*names: str, form: int = tarfile.GNU_FORMAT) -> bytes:
    members = [Member(name, "dir" if name.endswith("/") else "file", b"x" * 700) for name in names]
    return make_layer(members, form)


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q"], input=content, capture_output=True, check=True).stdout


ROOT = tar_of("./", "./bin/", "./etc/passwd")
OCI = tar_of("blobs/", "blobs/sha256/", f"blobs/sha256/{HEX}", "index.json", "oci-layout")
DOCKER = tar_of(f"{HEX}.json", f"{HEX}/", f"{HEX}/layer.tar", "manifest.json", "repositories")
BOTH = tar_of("blobs/", f"blobs/sha256/{HEX}", "index.json", "manifest.json", "oci-layout")


@pytest.fixture(name="kind")
def make_kind(tmp_path: Path) -> Any:
    def kind(content: bytes, *wanted: str) -> str:
        (tmp_path / "file").write_bytes(content)
        return kind_of(str(tmp_path / "file"), *wanted)

    return kind


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"hsqs" + bytes(100), "squashfs"),
        (make_sif([partition(b"hsqs")]), "sif"),
        (ROOT, "tar"),
        (tar_of("usr/bin/x"), "tar"),
        (tar_of("x" * 300, form=tarfile.PAX_FORMAT), "tar"),
        (tar_of("etc/manifest.json"), "tar"),
        (tar_of("./"), "tar"),
        (OCI, "oci-archive"),
        (tar_of("./", "./oci-layout", "./index.json"), "oci-archive"),
        (DOCKER, "docker-archive"),
        (BOTH, "docker-archive"),
    ],
    ids=[
        "squashfs",
        "sif",
        "dots",
        "tar",
        "pax",
        "deep",
        "empty",
        "oci",
        "oci-dots",
        "docker",
        "both",
    ],
)
def test_the_content_shows(kind: Any, content: bytes, expected: str) -> None:
    assert kind(content) == expected


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize(
    ("content", "expected"), [(ROOT, "tar"), (OCI, "oci-archive"), (DOCKER, "docker-archive")]
)
def test_compressed_files_show_it_too(kind: Any, pack: Any, content: bytes, expected: str) -> None:
    assert kind(pack(content)) == expected


def test_an_archive_of_both_kinds_is_what_the_user_says(kind: Any) -> None:
    assert kind(BOTH, "oci-archive") == "oci-archive"
    assert kind(BOTH, "docker-archive") == "docker-archive"
    assert kind(DOCKER, "oci-archive") == "docker-archive"
    assert kind(ROOT, "oci-archive") == "tar"


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"#!/bin/sh\n" * 200,
        b"\x7fELF" + bytes(2000),
        bytes(10240),
        gzip.compress(b"text"),
        gzip.compress(ROOT)[:20],
        DOCKER[:1600],
        b"",
        lzma.compress(b"text"),
    ],
)
def test_other_files_are_no_images(kind: Any, content: bytes) -> None:
    with pytest.raises(UserError, match="no image that hpcwrap knows"):
        kind(content)


def hostile(size: bytes) -> bytes:
    """A header with a size that is no size, and the right checksum."""
    header = bytearray(tar_of("blobs/")[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar_of("etc/passwd")


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 11 + b"\0", b"\x80" + b"\xff" * 11])
def test_sizes_that_lead_nowhere_end(kind: Any, size: bytes) -> None:
    assert kind(tar_of("oci-layout")[:1024] + hostile(size)) == "oci-archive"
    with pytest.raises(UserError, match="no image"):
        kind(hostile(size))
    with pytest.raises(UserError, match="no image"):
        kind(gzip.compress(hostile(size)))


@given(st.lists(st.sampled_from((ROOT[:512], OCI[:600], DOCKER[512:1300], bytes(512), b"x"))))
def test_any_bytes_are_something_or_a_users_error(
    tmp_path_factory: pytest.TempPathFactory, parts: Sequence[bytes]
) -> None:
    path = tmp_path_factory.mktemp("detect") / "file"
    path.write_bytes(b"".join(parts))
    try:
        assert kind_of(str(path)) in ("tar", "oci-archive", "docker-archive")
    except UserError:
        return
