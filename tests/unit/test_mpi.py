"""Which MPI library may stand for which other, and what the host's needs to do so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from libraries_by_gcc import compile_library

from hpcwrap.container import mpi
from hpcwrap.container.modules import mca_directories
from hpcwrap.container.mpi import FAMILIES, family_of, is_new_enough
from hpcwrap.errors import SiteError

HOME = "/usr/lib/x86_64-linux-gnu"

needs_open_mpi = pytest.mark.skipif(
    not os.path.exists(f"{HOME}/libmpi.so.40"), reason="needs Open MPI (see tools/packages)"
)


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/opt/x/lib/libmpi.so.40", "Open MPI"),
        ("/usr/lib64/openmpi/lib/libmpi.so.40.30.4", "Open MPI"),
        ("/usr/lib64/mpich/lib/libmpi.so.12", "MPICH"),
        ("/opt/intel/oneapi/mpi/latest/lib/libmpi.so.12.0.0", "MPICH"),
        (f"{HOME}/libmpich.so.12.2.2", "MPICH"),
    ],
)
def test_families_are_told_by_names(path: str, title: str) -> None:
    assert family_of(path).title == title


@pytest.mark.parametrize("path", ["/x/libmpi.so", "/x/libmpi.so.4", "/x/libmpi.so.400.1", "/x/y"])
def test_a_library_of_no_known_abi_is_the_sites_error(path: str) -> None:
    with pytest.raises(SiteError) as raised:
        family_of(path)
    assert "its name tells no ABI that is known (name one of libmpi" in raised.value.sentence()


@pytest.mark.parametrize(
    ("host", "image", "fits"),
    [
        ((40, 30, 4), (40, 30, 4), True),
        ((40, 40, 7), (40, 30, 4), True),
        ((40, 30, 1), (40, 30, 4), True),
        ((40, 30, 4), (40, 40, 7), False),
        ((12, 2, 2), (12, 10, 0), False),
        ((12, 0, 0), (12, 2, 2), None),
        ((12, 4, 1), (12,), None),
        ((12,), (12, 2, 2), None),
    ],
)
def test_the_host_has_to_have_what_the_image_has(
    host: tuple[int, ...], image: tuple[int, ...], fits: bool | None
) -> None:
    assert is_new_enough(host, image) is fits


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (0, "libopen-pal.so.40"),
        (0, "libopen-pal.so.80"),
        (0, "libopen_mpi.so.40"),
        (0, "libmca_common_ucx.so.40"),
        (0, "libmpi_usempif08-gfortran.so.40"),
        (0, "libucs.so.0"),
        (1, "libmpi.so.12"),
        (1, "libmpichfort.so.12"),
    ],
)
def test_parts_of_one_build_go_together(family: int, name: str) -> None:
    assert mpi.re.fullmatch(FAMILIES[family].own, name)


@pytest.mark.parametrize("name", ["libpmix.so.2", "libhwloc.so.15", "libfabric.so.1", "libz.so.1"])
def test_of_other_libraries_the_newer_is_taken(name: str) -> None:
    assert not any(mpi.re.fullmatch(family.own, name) for family in FAMILIES)


def test_only_functions_of_mpi_count() -> None:
    exports = frozenset(
        {"MPI_Send", "PMPI_Send", "MPIX_Allreduce_init", "ompi_mpi_int", "mpi_send"}
    )
    assert mpi.functions(exports) == {"MPI_Send", "PMPI_Send", "MPIX_Allreduce_init"}


@needs_open_mpi
def test_debians_open_mpi_is_found_with_all_that_it_needs() -> None:
    """The real one of this host, as tools/packages installs it."""
    host = mpi.host_mpi(f"{HOME}/libmpi.so.40")
    names = [library.name for library in host.libraries.closure.libraries]
    assert {"libmpi.so.40", "libopen-rte.so.40", "libopen-pal.so.40", "libhwloc.so.15"} <= {*names}
    assert "libpmix.so.2" in names, "needed by a module only"
    assert "libgfortran.so.5" not in names, "needed by the interface for Fortran only"
    assert host.version[:2] == (40, 30)
    directories = {each.path for each in host.libraries.closure.companions}
    assert {f"{HOME}/openmpi/lib/openmpi3", "/usr/share/openmpi", "/etc/openmpi"} <= directories
    assert host.guests
    assert "libmpi_mpifh.so.40" in host.guests.guests
    assert "libmpi.so.40" in host.guests.own


def test_no_mpi_on_the_host_is_the_sites_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi.libraries, "kept_find", lambda _names: {})
    with pytest.raises(SiteError) as raised:
        mpi.addition(())
    assert "none of libmpi.so.40, libmpi.so.12" in raised.value.sentence()
    assert "name it in the setting mpi_libraries" in raised.value.sentence()


def test_two_libraries_of_one_family_are_the_sites_error() -> None:
    with pytest.raises(SiteError, match="mpi_libraries names two libraries of MPICH"):
        mpi.addition(["/opt/a/lib/libmpi.so.12", "/opt/a/lib/libmpi.so.40", "/b/libmpich.so.12.1"])


def test_directories_of_modules_are_read_as_configure_left_them(tmp_path: Path) -> None:
    prefix = tmp_path / "opt" / "mpi"
    for name in ("lib/openmpi", "share/openmpi", "etc", "include"):
        (prefix / name).mkdir(parents=True)
    (prefix / "lib/openmpi/mca_btl_tcp.so").touch()
    (prefix / "share/openmpi/help-mpi.txt").touch()
    (prefix / "etc/openmpi-mca-params.conf").touch()
    texts = [str(prefix), "${prefix}", "${exec_prefix}/lib", "${libdir}/openmpi", "${prefix}/share"]
    texts += ["${datadir}/openmpi", "${prefix}/etc", "${prefix}/include", "/proc/self"]
    source = "\n".join(f'const char t{i}[] = "{text}";' for i, text in enumerate(texts))
    library = compile_library(tmp_path / "libopen-pal.so.40", source)
    (tmp_path / "link").symlink_to(tmp_path / "opt")
    found = mca_directories(str(library))
    assert found == [f"{prefix}/{name}" for name in ("etc", "lib/openmpi", "share/openmpi")]
    assert all(os.path.isdir(each) for each in found)
