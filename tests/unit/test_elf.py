"""What is read out of shared libraries: real ones, compiled here, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from libraries_by_gcc import compile_library

from hpcwrap.container import elf
from hpcwrap.container.elf import Kind, NotElfError

SOURCE = """
#include <stdio.h>
int offered = 7;
static int hidden(void) { return printf("x"); }
int called(void) { return hidden(); }
"""


@pytest.fixture(name="library")
def compiled(tmp_path: Path) -> Path:
    other = compile_library(tmp_path / "libother.so", "int other;", soname="libother.so.3")
    return compile_library(
        tmp_path / "libtest.so.1.2.3",
        SOURCE,
        soname="libtest.so.1",
        needs=[other],
        options=["-Wl,-rpath,$ORIGIN/../lib:/opt/lib", "-Wl,--enable-new-dtags"],
    )


def test_what_a_library_says_of_itself(library: Path) -> None:
    read = elf.read(str(library))
    assert read.kind == elf.read_kind(Path("/proc/self/exe").read_bytes()[: elf.HEADER_SIZE])
    assert read.soname == "libtest.so.1"
    assert read.needed == ("libother.so.3", "libc.so.6")
    assert read.search == ("$ORIGIN/../lib", "/opt/lib")
    assert (2, 2) <= read.glibc < (3,)
    assert read.defines == ()


def test_versions_of_symbols_that_a_library_offers(tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("TEST_1 { global: called; };\nTEST_1_5 { global: offered; } TEST_1;\n")
    options = [f"-Wl,--version-script={script}"]
    library = compile_library(tmp_path / "libv.so", SOURCE, soname="libv.so.1", options=options)
    assert elf.read(str(library)).defines == ("TEST_1", "TEST_1_5")


def test_the_old_kind_of_search_path_counts_without_the_new_one(tmp_path: Path) -> None:
    options = ["-Wl,-rpath,/opt/lib", "-Wl,--disable-new-dtags"]
    library = compile_library(tmp_path / "libold.so", "int old;", options=options)
    assert elf.read(str(library)).search == ("/opt/lib",)


def test_what_a_library_offers(library: Path) -> None:
    with open(library, "rb") as file:
        exports = elf.read_exports(file)
    assert "called" in exports
    assert exports.isdisjoint({"hidden", "printf", "offered"})


@pytest.mark.parametrize("cut", [0, 3, 19, 64, 400, 2000])
def test_a_library_that_is_cut_off_is_no_library(library: Path, tmp_path: Path, cut: int) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(library.read_bytes()[:cut])
    with pytest.raises(NotElfError):
        elf.read(str(broken))


def test_kinds() -> None:
    header = bytearray(b"\x7fELF\x01\x02" + bytes(14))
    header[18:20] = b"\x00\x15"
    assert elf.read_kind(bytes(header)) == Kind(1, 21)
    for broken in (
        b"",
        b"\x7fELF",
        b"#!/bin/sh and more than twenty",
        b"\x7fELF\x02\x07" + bytes(14),
    ):
        with pytest.raises(NotElfError):
            elf.read_kind(broken)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("2.9", "2.31"), ("2.31", "2.38"), ("2", "2.1"), ("1.99.99", "2"), ("", "0")],
)
def test_versions_are_numbers(earlier: str, later: str) -> None:
    assert elf.parse_version(earlier) < elf.parse_version(later)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libmpi.so.40.30.4", (40, 30, 4)),
        ("libmpi.so.12", (12,)),
        ("libhwloc.so", ()),
        ("libevent_core-2.1.so.7.0.1", (7, 0, 1)),
        ("libx.so.1.so.2.3rc1", (2, 3)),
    ],
)
def test_versions_of_files(name: str, version: tuple[int, ...]) -> None:
    assert elf.file_version(name) == version


def test_the_newest_need_of_glibc() -> None:
    assert elf.newest_glibc(["GLIBC_2.9", "GLIBC_2.34", "GLIBC_PRIVATE", "GCC_4.0"]) == (2, 34)
    assert elf.newest_glibc(["GLIBCXX_3.4.30"]) == ()
