"""Which of an image's MPI libraries give way to the host's: libraries compiled for the purpose.

They stand in for those whose files have no number to compare, such as Intel's; tests/slurm takes
Debian's.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Sequence

import pytest
from containers import Container, Make, make_squashfs

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from libraries_by_gcc import compile_library

from hpcwrap.container import mpi
from hpcwrap.container.addition import Addition
from hpcwrap.errors import SiteError, UserError

pytestmark = pytest.mark.privileged

HOME = "usr/lib/x86_64-linux-gnu"


def functions(*names: str) -> str:
    return "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)


def host_library(tmp_path: Path, *names: str, file: str = "libmpi.so.12.0.0") -> Path:
    return compile_library(tmp_path / "host" / file, functions(*names), soname="libmpi.so.12")


@pytest.fixture(name="image")
def tree(tmp_path: Path) -> Path:
    """The tree of an image with glibc and no MPI."""
    root = tmp_path / "image"
    (root / HOME).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "bin").mkdir()
    shutil.copy("/bin/busybox", root / "bin")
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", root / HOME)
    return root


def build(make: Make, image: Path, hosts: Sequence[Path]) -> Container:
    operation = mpi.HostMpi(tuple(mpi.host_mpi(str(path)) for path in hosts))
    addition = Addition(operations=(operation,))
    return make(image=make_squashfs(image), additions=[addition], user_namespace=False)


def is_hosts(container: Container, path: str, host: Path) -> bool:
    inside = container.run("/bin/busybox", "stat", "-L", "-c", "%d:%i", path).stdout.strip()
    status = host.stat()
    return inside == f"{status.st_dev}:{status.st_ino}"


def test_without_numbers_the_functions_are_compared(
    make: Make, image: Path, tmp_path: Path
) -> None:
    compile_library(image / HOME / "libmpi.so.12.4.1", functions("MPI_Init", "MPI_Send", "inner"))
    (image / HOME / "libmpi.so.12").symlink_to("libmpi.so.12.4.1")
    host = host_library(tmp_path, "MPI_Init", "MPI_Send", "MPI_More")
    assert is_hosts(build(make, image, [host]), f"/{HOME}/libmpi.so.12", host)


def test_a_function_that_the_host_lacks_is_named(make: Make, image: Path, tmp_path: Path) -> None:
    own = functions("MPI_Init", "MPI_Send", "MPI_Session_init")
    compile_library(image / HOME / "libmpi.so.12", own)
    host = host_library(tmp_path, "MPI_Init", "MPI_Send")
    with pytest.raises(UserError, match=r"libmpi.so.12.0.0 lacks 1 of its fun.*MPI_Session_init"):
        build(make, image, [host])


def test_a_broken_library_of_the_image_costs_nothing_but_itself(
    make: Make, image: Path, tmp_path: Path
) -> None:
    """It is read as the user, for a bounded time; what has no functions has none to lack."""
    good = compile_library(tmp_path / "good.so", functions("MPI_Init")).read_bytes()
    (image / HOME / "libmpi.so.12").write_bytes(good[: len(good) // 2])
    host = host_library(tmp_path, "MPI_Init")
    assert is_hosts(build(make, image, [host]), f"/{HOME}/libmpi.so.12", host)


def test_the_other_name_of_the_library_is_the_hosts_too(
    make: Make, image: Path, tmp_path: Path
) -> None:
    """Debian's MPICH is libmpich.so.12, everybody else's libmpi.so.12: one ABI."""
    compile_library(image / HOME / "libmpich.so.12.2.2", functions("MPI_Init"))
    (image / HOME / "libmpich.so.12").symlink_to("libmpich.so.12.2.2")
    host = host_library(tmp_path, "MPI_Init", file="libmpi.so.12.3.0")
    assert is_hosts(build(make, image, [host]), f"/{HOME}/libmpich.so.12", host)


def test_an_mpi_where_only_the_program_looks_is_found(
    make: Make, image: Path, tmp_path: Path
) -> None:
    compile_library(image / "opt/mpich/lib/libmpi.so.12.2.0", functions("MPI_Init"))
    (image / "opt/mpich/lib/libmpi.so.12").symlink_to("libmpi.so.12.2.0")
    host = host_library(tmp_path, "MPI_Init", file="libmpi.so.12.3.0")
    container = build(make, image, [host])
    assert is_hosts(container, "/opt/mpich/lib/libmpi.so.12", host)


def test_an_image_with_another_mpi_is_refused(make: Make, image: Path, tmp_path: Path) -> None:
    compile_library(image / HOME / "libmpi.so.40", functions("MPI_Init"))
    host = host_library(tmp_path, "MPI_Init")
    with pytest.raises(UserError, match=r"host's MPI, which is MPICH: the image's MPI is Open MPI"):
        build(make, image, [host])


def test_the_interface_for_another_language_comes_only_where_the_image_has_it(
    make: Make, image: Path, tmp_path: Path
) -> None:
    compile_library(image / HOME / "libmpi.so.12.2.0", functions("MPI_Init"))
    (image / HOME / "libmpi.so.12").symlink_to("libmpi.so.12.2.0")
    host = host_library(tmp_path, "MPI_Init", file="libmpi.so.12.3.0")
    fortran = compile_library(
        host.parent / "libmpifort.so.12", functions("mpi_init_"), soname="libmpifort.so.12"
    )
    container = build(make, image, [host])
    assert container.run("/bin/busybox", "test", "-e", f"/{HOME}/libmpifort.so.12").code == 1
    compile_library(image / HOME / "libmpichfort.so.12", functions("mpi_init_"))
    make_again = image.rename(image.parent / "again")
    assert is_hosts(build(make, make_again, [host]), f"/{HOME}/libmpichfort.so.12", fortran)


def test_a_library_that_is_not_there_is_the_sites(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"cannot open the library .*libmpi.so.12: No such file"):
        mpi.host_mpi(str(tmp_path / "libmpi.so.12"))
