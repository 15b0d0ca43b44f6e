"""Fabrics as plans: what is brought in, what is hidden, what is warned of."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Dict, Sequence

import pytest
from libraries_by_gcc import compile_library

from hpcwrap.container import fabric, libraries
from hpcwrap.container.addition import Addition
from hpcwrap.container.hiding import Hide
from hpcwrap.container.hostfabric import HostFabric
from hpcwrap.environment import UNLIMITED, Machine, Rlimit
from hpcwrap.errors import SiteError

KIB = 1 << 10


@pytest.fixture(name="present")
def a_device_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory as /sys/class/infiniband is on a node with a device."""
    (tmp_path / "class" / "mlx5_0").mkdir(parents=True)
    monkeypatch.setattr(fabric, "PRESENT", (str(tmp_path / "class"),))


def memlock(soft: int) -> Machine:
    return Machine(fabric="image", rlimits=(Rlimit("memlock", soft, soft),))


def test_the_images_own_libraries_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "PRESENT", ("/no/such/class",))
    assert fabric.addition(memlock(1)) == Addition()


def test_none_hides_every_kind_of_device() -> None:
    (operation,) = fabric.addition(Machine(fabric="none")).operations
    assert isinstance(operation, Hide)
    assert {"/dev/infiniband", "/dev/hfi1*", "/sys/class/infiniband"} <= set(operation.patterns)
    assert operation.describe().startswith("no fabric: /dev/infiniband")


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize(
    ("soft", "warned"), [(64 * KIB, True), (8 << 20, True), (2 << 30, False), (UNLIMITED, False)]
)
def test_a_small_limit_of_the_site_is_warned_of(soft: int, warned: bool) -> None:
    assert bool(fabric.memlock_warnings(memlock(soft))) == warned


@pytest.mark.usefixtures("present")
def test_without_a_limit_of_the_site_the_nodes_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    monkeypatch.setattr(fabric, "ENOUGH_MEMLOCK", hard)
    assert not fabric.memlock_warnings(Machine(fabric="image"))
    monkeypatch.setattr(fabric, "ENOUGH_MEMLOCK", hard + 1)
    limited = hard != resource.RLIM_INFINITY
    assert bool(fabric.memlock_warnings(Machine(fabric="image"))) == limited


def test_a_node_without_devices_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "PRESENT", ("/no/such/class",))
    assert fabric.memlock_warnings(memlock(64 * KIB)) == ()


def test_drivers_lie_beside_the_library_that_loads_them(tmp_path: Path) -> None:
    directory = tmp_path / "lib" / "libibverbs"
    directory.mkdir(parents=True)
    for name in ("libmlx5-rdmav34.so", "librxe-rdmav34.so", "README"):
        (directory / name).touch()
    (tmp_path / "lib" / "libibverbs.so.1.14.44.0").touch()
    link = tmp_path / "libibverbs.so.1"
    link.symlink_to("lib/libibverbs.so.1.14.44.0")
    drivers = fabric.find_drivers({fabric.VERBS: str(link)})
    assert [os.path.basename(path) for path in drivers] == [
        "libmlx5-rdmav34.so",
        "librxe-rdmav34.so",
    ]
    assert fabric.find_drivers({}) == ()


def test_a_host_without_libraries_is_the_sites_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_names: Sequence[str]) -> Dict[str, str]:
        return {}

    monkeypatch.setattr(libraries, "kept_find", nothing)
    with pytest.raises(SiteError, match=r"neither libibverbs\.so\.1 nor libfabric\.so\.1"):
        fabric.addition(Machine(fabric="host"))


def test_the_hosts_libraries_are_planned(tmp_path: Path) -> None:
    made = compile_library(tmp_path / fabric.VERBS, "int verbs;", soname=fabric.VERBS)
    addition = fabric.host_addition({fabric.VERBS: str(made)})
    (operation,) = addition.operations
    assert isinstance(operation, HostFabric)
    assert operation.libraries.own == (fabric.VERBS,)
    assert "libibverbs.so.1" in operation.describe()
    (names,) = addition.mounts
    assert names.target == "/etc/libibverbs.d"
