"""SIF files: where the root lies in them, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sifs import (
    DATA,
    ENCRYPTED,
    EXT3,
    JSON,
    OCI_INDEX,
    SYSTEM,
    Thing,
    make_sif,
    partition,
)

from hpcwrap.errors import UserError
from hpcwrap.image.sif import is_sif, parse_sif

DEFINITION = Thing(0x4001, b"bootstrap: docker\n")
ROOT = partition(b"hsqs" + b"x" * 5000)
CONFIG = Thing(JSON, b'{"Env": []}', "oci-config.json")
WHOLE = make_sif([DEFINITION, Thing(JSON, b"{}", "inspect-metadata.json"), CONFIG, ROOT])


@pytest.fixture(name="path")
def make_path(tmp_path: Path) -> Path:
    return tmp_path / "x.sif"


def opened(path: Path, content: bytes) -> BinaryIO:
    path.write_bytes(content)
    return path.open("rb")


def test_the_root_and_the_configuration_are_found(path: Path) -> None:
    with opened(path, WHOLE) as file:
        sif = parse_sif(file, "x86_64")
    assert (sif.root.offset, sif.root.size) == (DATA + 3 * 4096, len(ROOT.content))
    assert sif.config is not None
    assert (sif.config.offset, sif.config.size) == (DATA + 2 * 4096, len(CONFIG.content))
    assert is_sif(WHOLE[:64])


def test_an_older_file_has_no_configuration(path: Path) -> None:
    with opened(path, make_sif([partition(b"other", role=SYSTEM), ROOT])) as file:
        sif = parse_sif(file, "x86_64")
    assert sif.config is None
    assert sif.root.offset == DATA + 4096


@pytest.mark.parametrize(
    ("things", "machine", "reason", "hint"),
    [
        ([partition(b"x", form=ENCRYPTED)], "x86_64", "not squashfs but encrypted", "--encrypt"),
        ([partition(b"x", form=EXT3)], "x86_64", "not squashfs but ext3", "apptainer build"),
        ([partition(b"x", form=99)], "x86_64", "of an unknown kind", ""),
        ([ROOT], "aarch64", "not for this machine (aarch64)", "there for x86_64"),
        ([partition(b"x", "99")], "x86_64", "not for this machine (x86_64)", "unknown"),
        ([DEFINITION], "x86_64", "without a root file system", ""),
        ([ROOT, ROOT], "x86_64", "without a root file system", ""),
        ([Thing(OCI_INDEX, b"{}")], "x86_64", "an OCI-SIF file", "--no-oci"),
    ],
)
def test_what_cannot_be_used_is_explained(
    path: Path, things: List[Thing], machine: str, reason: str, hint: str
) -> None:
    with opened(path, make_sif(things)) as file, pytest.raises(UserError) as caught:
        parse_sif(file, machine)
    assert reason in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no SIF file"),
        (WHOLE[:100], "no SIF file"),
        (b"x" * 200, "no SIF file"),
        (make_sif([ROOT], b"77"), "unknown version '77'"),
        (WHOLE[:5000], "ends in its table"),
        (WHOLE[:4000], "lies outside"),
        (WHOLE[: DATA + 100], "ends before its objects"),
    ],
)
def test_damaged_files(path: Path, content: bytes, reason: str) -> None:
    with opened(path, content) as file, pytest.raises(UserError) as caught:
        parse_sif(file, "x86_64")
    assert reason in caught.value.message


@given(st.integers(0, 4096 + 585 * 5), st.binary(min_size=1, max_size=16))
def test_no_damage_is_more_than_a_users_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes
) -> None:
    content = WHOLE[:at] + damage + WHOLE[at + len(damage) :]
    path = tmp_path_factory.mktemp("sif") / "x.sif"
    with opened(path, content) as file:
        try:
            sif = parse_sif(file, "x86_64")
        except UserError:
            return
    for part in (sif.root, *([sif.config] if sif.config else [])):
        assert 0 <= part.offset <= part.offset + part.size <= len(content)
