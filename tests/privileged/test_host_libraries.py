"""Libraries of the host in images whose programs load them: glibc, and programs made by gcc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
from containers import Make, make_squashfs

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from libraries_by_gcc import compile_library

from hpcwrap.container import libraries
from hpcwrap.container.addition import Addition
from hpcwrap.container.hostlibraries import HostLibraries
from hpcwrap.container.libraries import Closure, Library
from hpcwrap.errors import UserError

pytestmark = pytest.mark.privileged

PROGRAM = """
#include <stdio.h>
const char *who(void);
int main(void) { return puts(who()) < 0; }
"""
HOME = "usr/lib/x86_64-linux-gnu"
LOADER = "/lib64/ld-linux-x86-64.so.2"


def who(answer: str) -> str:
    return f'const char *who(void) {{ return "{answer}"; }}'


class Place(NamedTuple):
    """A directory for libraries of "the host", and an image's tree with glibc."""

    host: Path
    image: Path

    def host_library(self, name: str, answer: str) -> Path:
        """A library of the host that says `answer`; its soname is that of the image's."""
        return compile_library(self.host / name, who(answer), soname="libwho.so.1")

    def image_library(self, name: str, answer: str) -> Path:
        """A library of the image, and the link by its soname beside it."""
        path = compile_library(self.image / name, who(answer), soname="libwho.so.1")
        link = path.parent / "libwho.so.1"
        if link != path:
            link.symlink_to(path.name)
        return path


@pytest.fixture(name="place")
def image_with_glibc(tmp_path: Path) -> Place:
    image = tmp_path / "image"
    home = image / "usr/lib/x86_64-linux-gnu"
    home.mkdir(parents=True)
    (image / "lib").symlink_to("usr/lib")
    for name in ("lib64", "bin"):
        (image / name).mkdir()
    shutil.copy(LOADER, image / "lib64")
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", home)
    return Place(tmp_path / "host", image)


def program(place: Place, *options: str) -> None:
    """A program of the image that was linked with its libwho.so.1."""
    stub = compile_library(place.host / "stub" / "libwho.so", who("stub"), soname="libwho.so.1")
    compiler = ["gcc", "-x", "c", "-", "-o", place.image / "bin" / "program", *options]
    linked = ["-x", "none", str(stub)]
    subprocess.run([*compiler, *linked], input=PROGRAM.encode(), check=True)


def say(
    make: Make, place: Place, host: Path, *, own: bool = True, directories: tuple[str, ...] = ()
) -> str:
    """What the program says in a container with the host's libwho.so.1."""
    names = ("libwho.so.1",) if own else ()
    operation = HostLibraries("tests", libraries.closure([str(host)]), names, directories)
    return start(make, place, operation)


def start(make: Make, place: Place, *operations: HostLibraries) -> str:
    # mksquashfs adds to what is there.
    place.image.with_suffix(".sqsh").unlink(missing_ok=True)
    image = make_squashfs(place.image)
    addition = Addition(operations=operations)
    ran = make(image=image, additions=[addition], user_namespace=False).run("/bin/program")
    return ran.stdout.strip() or ran.stderr


def test_a_library_that_the_image_lacks_is_there(make: Make, place: Place) -> None:
    program(place)
    assert say(make, place, place.host_library("libwho.so.1.0.0", "host"), own=False) == "host"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("host", "image", "newer"),
    [("1.10.0", "1.9.4", "host"), ("1.2.0", "1.10.0", "image"), ("1.2.0", "1.2.0", "image")],
)
def test_the_newer_one_is_taken_or_always_the_hosts(
    make: Make, place: Place, host: str, image: str, newer: str, own: bool
) -> None:
    program(place)
    place.image_library(f"usr/lib/x86_64-linux-gnu/libwho.so.{image}", "image")
    library = place.host_library(f"libwho.so.{host}", "host")
    assert say(make, place, library, own=own) == ("host" if own else newer)


@pytest.mark.parametrize(
    ("host", "image", "newer"),
    [
        (["WHO_1", "WHO_2"], ["WHO_1"], "host"),
        (["WHO_1"], ["WHO_1", "WHO_2"], "image"),
        (["WHO_1"], ["WHO_1"], "image"),
        (["WHO_1"], [], "host"),
        ([], ["WHO_1"], "image"),
    ],
)
def test_of_equal_numbers_the_one_with_more_versions_of_symbols_is_newer(
    make: Make, place: Place, tmp_path: Path, host: list[str], image: list[str], newer: str
) -> None:
    program(place)
    for directory, versions in ((place.host, host), (place.image / HOME, image)):
        script = tmp_path / "versions"
        script.write_text("".join(f"{name} {{ }};\n" for name in versions))
        options = [f"-Wl,--version-script={script}"] if versions else []
        source = who("host" if directory == place.host else "image")
        file = directory / "libwho.so.1"
        compile_library(file, source, soname="libwho.so.1", options=options)
    assert say(make, place, place.host / "libwho.so.1", own=False) == newer


def test_a_program_that_says_where_its_libraries_are_gets_the_hosts(
    make: Make, place: Place
) -> None:
    program(place, "-Wl,-rpath,/opt/mpi/lib", "-Wl,--disable-new-dtags")
    place.image_library("opt/mpi/lib/libwho.so.1.0.0", "image")
    host = place.host_library("libwho.so.1.0.0", "host")
    assert say(make, place, host) == "image"
    assert say(make, place, host, directories=("/opt/*/lib",)) == "host"


def test_directories_of_ld_so_conf_are_looked_at(make: Make, place: Place) -> None:
    program(place, "-Wl,-rpath,/srv/lib")
    place.image_library("srv/lib/libwho.so.1.0.0", "image")
    (place.image / "etc/ld.so.conf.d").mkdir(parents=True)
    (place.image / "etc/ld.so.conf").write_text("# all\ninclude ld.so.conf.d/*.conf\n")
    (place.image / "etc/ld.so.conf.d/srv.conf").write_text("/srv/lib\n")
    assert say(make, place, place.host_library("libwho.so.1.0.0", "host")) == "host"


def test_what_a_library_needs_comes_along(make: Make, place: Place) -> None:
    program(place)
    deep = compile_library(
        place.host / "libdeep.so.5", 'const char *deep = "deep";', soname="libdeep.so.5"
    )
    top = compile_library(
        place.host / "libwho.so.1",
        "extern const char *deep; const char *who(void) { return deep; }",
        soname="libwho.so.1",
        needs=[deep],
        options=[f"-Wl,-rpath,{place.host}"],
    )
    assert say(make, place, top) == "deep"


def test_two_purposes_may_want_the_same_library(make: Make, place: Place) -> None:
    program(place)
    place.image_library("usr/lib/x86_64-linux-gnu/libwho.so.1.0.0", "image")
    first = libraries.closure([str(place.host_library("a/libwho.so.1.0.0", "first"))])
    second = libraries.closure([str(place.host_library("b/libwho.so.1.0.0", "second"))])
    own = ("libwho.so.1",)
    both = HostLibraries("first", first, own), HostLibraries("second", second, own)
    assert start(make, place, *both) == "first"


def test_links_of_the_image_lead_nowhere_else(make: Make, place: Place, tmp_path: Path) -> None:
    """Neither is a host's file looked at or mounted on, nor one made in the host's /tmp."""
    program(place)
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o777)
    compile_library(victim / "libwho.so.1", who("victim"), soname="libwho.so.1")
    (place.image / "etc").mkdir()
    (place.image / "etc/ld.so.conf").write_text(f"{victim}\n/srv/lib\n")
    (place.image / "srv").mkdir()
    (place.image / "srv/lib").symlink_to(victim)
    before = sorted(os.listdir(victim))
    assert say(make, place, place.host_library("libwho.so.1.0.0", "host")) == "host"
    (place.image / "usr/lib/x86_64-linux-gnu/libwho.so.1").symlink_to(victim / "libwho.so.1")
    assert say(make, place, place.host / "libwho.so.1.0.0") == "victim"
    assert sorted(os.listdir(victim)) == before


# Which glibc


Glibc = Callable[[str], None]


@pytest.fixture(name="glibc")
def other_glibc(place: Place) -> Glibc:
    """Make the image say that it has another glibc: none so old runs programs of this compiler."""

    def has(version: str) -> None:
        text = f"GNU C Library (Test GLIBC {version}-1) stable release version {version}."
        library = place.image / "usr/lib/x86_64-linux-gnu/libc.so.6"
        compile_library(library, f'const char text[] = "{text}";', soname="libc.so.6")

    return has


def needing(place: Place, version: tuple[int, ...]) -> HostLibraries:
    file = str(place.host_library("libwho.so.1.0.0", "host"))
    library = Library("libwho.so.1", file, version)
    kind = libraries.closure([file]).kind
    return HostLibraries("MPI", Closure(kind, (library,)), cure="take another image")


@pytest.mark.parametrize(("needs", "has"), [("2.38", "2.31"), ("2.31", "2.9"), ("3.0", "2.99")])
def test_a_library_for_a_newer_glibc_is_refused(
    make: Make, place: Place, glibc: Glibc, needs: str, has: str
) -> None:
    program(place)
    glibc(has)
    version = tuple(int(part) for part in needs.split("."))
    with pytest.raises(UserError) as raised:
        start(make, place, needing(place, version))
    assert raised.value.sentence() == (
        "cannot use the host's libraries for MPI in this image: libwho.so.1.0.0 needs glibc "
        f"{needs}, the image has {has} (take another image)"
    )


def test_a_library_for_an_older_glibc_is_taken(make: Make, place: Place, glibc: Glibc) -> None:
    program(place)
    glibc("2.31")
    start(make, place, needing(place, (2, 9)))


def test_an_image_with_musl_is_refused(make: Make, place: Place) -> None:
    program(place)
    (place.image / "usr/lib/ld-musl-x86_64.so.1").touch()
    operation = needing(place, (2, 2))
    start(make, place, operation)  # beside glibc, for its compiler, it does not matter
    (place.image / "usr/lib/x86_64-linux-gnu/libc.so.6").unlink()
    with pytest.raises(UserError, match="its C library is musl, and theirs glibc"):
        start(make, place, operation)


def test_an_image_of_static_programs_is_left_as_it_is(make: Make, place: Place) -> None:
    """The tests' usual image is one: it loads no libraries, and nothing can fail."""
    operation = needing(place, (9, 9))
    container = make(additions=[Addition(operations=(operation,))], user_namespace=True)
    assert container.run("true").code == 0
    assert "libwho" not in container.run("cat", "/proc/self/mountinfo").stdout
