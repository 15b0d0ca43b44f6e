"""What a library needs on this host, found as the dynamic linker does it; kept while it is so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from libraries_by_gcc import compile_library

from hpcwrap.container import libraries
from hpcwrap.errors import SiteError

OPEN_PAL = "/usr/lib/x86_64-linux-gnu/libopen-pal.so.40"


@pytest.fixture(name="top")
def chain(tmp_path: Path) -> Path:
    """libtop needs libmiddle, beside it, which needs libbottom, in another directory."""
    bottom = compile_library(
        tmp_path / "deep" / "libbottom.so.2.0.1", "int b;", soname="libbottom.so.2"
    )
    (tmp_path / "deep" / "libbottom.so.2").symlink_to(bottom.name)
    middle = compile_library(
        tmp_path / "libmiddle.so.1",
        "int m;",
        soname="libmiddle.so.1",
        needs=[bottom],
        options=[f"-Wl,-rpath,{tmp_path}/deep"],
    )
    return compile_library(
        tmp_path / "libtop.so.4",
        '#include <stdio.h>\nint t(void) { return printf("t"); }',
        soname="libtop.so.4",
        needs=[middle],
        options=["-Wl,-rpath,${ORIGIN}", f"-Wl,-rpath-link,{tmp_path}/deep"],
    )


def names(found: libraries.Closure) -> list[str]:
    return [library.name for library in found.libraries]


def test_a_closure_follows_each_librarys_own_search_path(top: Path, tmp_path: Path) -> None:
    found = libraries.closure([str(top)])
    assert names(found) == ["libtop.so.4", "libmiddle.so.1", "libbottom.so.2"]
    assert found.libraries[2].path == str(tmp_path / "deep" / "libbottom.so.2.0.1")
    assert found.newest.name == "libtop.so.4"


@pytest.mark.skipif(not os.path.exists(OPEN_PAL), reason="needs Open MPI (see tools/packages)")
def test_a_closure_agrees_with_the_dynamic_linker() -> None:
    """A real library of this host, against what ldd(1) says."""
    library = OPEN_PAL
    lines = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    known = {line.split()[0]: line.split()[2] for line in lines.splitlines() if "=>" in line}
    expected = {name: os.path.realpath(path) for name, path in known.items()}
    found = {each.name: each.path for each in libraries.closure([library]).libraries[1:]}
    assert found
    assert found == {k: v for k, v in expected.items() if not libraries.GLIBC.fullmatch(k)}


def test_a_library_is_not_looked_for_where_anyone_may_put_one(top: Path, tmp_path: Path) -> None:
    """A build may have left its own directory in a library; the user who makes it anew decides."""
    (tmp_path / "deep").chmod(0o1777)
    with pytest.raises(SiteError, match=r"cannot find the library libbottom\.so\.2"):
        libraries.closure([str(top)])


def test_a_missing_need_is_the_sites(top: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "libbottom.so.2").unlink()
    with pytest.raises(SiteError, match=r"cannot find the library libbottom.so.2, which .*middle"):
        libraries.closure([str(top)])


def test_a_module_counts_only_where_its_needs_are_there(top: Path, tmp_path: Path) -> None:
    other = compile_library(tmp_path / "libother.so", "int o;", soname="libother.so.1")
    module = compile_library(tmp_path / "module.so", "int x;", needs=[other])
    assert "libother.so.1" not in names(libraries.closure([str(top)], [str(module)]))
    (tmp_path / "libother.so.1").symlink_to("libother.so")
    search = [f"-Wl,-rpath,{tmp_path}"]
    module = compile_library(tmp_path / "module.so", "int x;", needs=[other], options=search)
    found = libraries.closure([str(top)], [str(module)])
    assert names(found)[-1] == "libother.so.1"


def test_what_was_found_is_kept_until_a_file_changes(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = str(tmp_path / "kept")
    first = libraries.kept_closure([str(top)], kept=kept)
    with monkeypatch.context() as patch:
        patch.setattr(libraries, "closure", None)
        assert libraries.kept_closure([str(top)], kept=kept) == first
    compile_library(tmp_path / "libmiddle.so.1", "int m;", soname="libmiddle.so.1")
    assert "libbottom.so.2" not in names(libraries.kept_closure([str(top)], kept=kept))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"asked": 7}'])
def test_broken_notes_are_made_anew(top: Path, tmp_path: Path, content: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "libtop.so.4.json").write_text(content)
    assert len(libraries.kept_closure([str(top)], kept=str(kept)).libraries) == 3


def test_no_library_no_closure(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"cannot open the library /nowhere/x\.so: No such file"):
        libraries.closure(["/nowhere/x.so"])
    text = tmp_path / "libtext.so"
    text.write_text("INPUT(libreal.so)\n")
    with pytest.raises(SiteError, match=r"cannot use the library .*libtext.so: it is no ELF file"):
        libraries.closure([str(text)])


@pytest.mark.parametrize("name", ["libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "librt.so.1"])
def test_the_c_library_is_the_images_own(name: str) -> None:
    assert libraries.GLIBC.fullmatch(name)


@pytest.mark.parametrize("name", ["libcrypt.so.1", "libmpi.so.40", "libcuda.so.1", "libmount.so.1"])
def test_other_libraries_come_along(name: str) -> None:
    assert not libraries.GLIBC.fullmatch(name)
