"""Where an image's dynamic linker looks, whatever it was made for; and what of the host is safe."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hpcwrap.container import imagelibraries
from hpcwrap.container.modules import is_guarded, mca_directories

LOOK = """
import os, sys
from hpcwrap.container import elf, imagelibraries
image = imagelibraries.ImageLibraries(os.open(sys.argv[1], os.O_PATH), elf.Kind(2, 62))
print(len(image.directories))
"""
ENOUGH = 10
"""Seconds of the processor's time: endless without the limits, and below one with them."""


def configured(image: Path, text: str) -> list[str]:
    (image / "etc").mkdir(exist_ok=True)
    (image / "etc/ld.so.conf").write_text(text)
    root = os.open(image, os.O_PATH)
    try:
        return imagelibraries.configured(root)
    finally:
        os.close(root)


def test_included_files_count_where_they_are_named(tmp_path: Path) -> None:
    more = tmp_path / "etc/ld.so.conf.d"
    more.mkdir(parents=True)
    (more / "a.conf").write_text("/a  # not this\n/a/b/\n")
    (more / "b.conf").write_text("include /etc/one\n")
    (tmp_path / "etc/one").write_text("/one\n")
    found = configured(tmp_path, "/first\ninclude ld.so.conf.d/*.conf one\n/last\n")
    assert found == ["/first", "/a", "/a/b", "/one", "/last"]


@pytest.mark.parametrize(
    "line", ["include /etc/ld.so.conf", "include /etc/./*", "include /d/*/*/*/*/*/*", "/d/."]
)
def test_an_image_cannot_keep_root_busy(tmp_path: Path, line: str) -> None:
    """By files that include themselves, links to where they lie, and lines without number."""
    (tmp_path / "d").mkdir()
    (tmp_path / "etc").mkdir()
    text = "".join(f"{line}{'/.' * number}\n" for number in range(300))
    for number in range(300):
        (tmp_path / "d" / str(number)).symlink_to(".")
        (tmp_path / "etc" / str(number)).write_text(f"{line}\n" * 300)
    (tmp_path / "etc/ld.so.conf").write_text(f"{line}\n" * 300 + text)
    ran = subprocess.run(
        [sys.executable, "-c", LOOK, tmp_path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (ENOUGH, ENOUGH)),
        check=True,
        capture_output=True,
    )
    assert int(ran.stdout) <= imagelibraries.MOST_DIRECTORIES


@pytest.mark.privileged
def test_what_anyone_may_write_is_no_directory_of_modules(tmp_path: Path) -> None:
    """Open MPI's libraries have /tmp in their text: what lies there would get into others' jobs."""
    for name in ("guarded", "anyones", "anyones/below", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mca_evil.so").touch()
    (tmp_path / "anyones").chmod(0o1777)
    os.chown(tmp_path / "anyones/below", 65534, 65534)
    (tmp_path / "link").symlink_to(tmp_path / "anyones")
    library = tmp_path / "libopen-pal.so.40"
    names = [f"{tmp_path}/{name}" for name in ("guarded", "anyones", "anyones/below", "link")]
    library.write_bytes(b"\0" + b"\0".join(map(os.fsencode, names)) + b"\0")
    assert mca_directories(str(library)) == [f"{tmp_path}/guarded"]


def test_what_is_roots_is_guarded_below_a_sticky_directory(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    tmp_path.chmod(0o1777)
    assert is_guarded(f"{tmp_path}/roots")
    assert not is_guarded(f"{tmp_path}/gone")
    tmp_path.chmod(0o777)
    assert not is_guarded(f"{tmp_path}/roots")
