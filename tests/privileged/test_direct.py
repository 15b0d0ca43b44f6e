"""Directories of the image that nothing was put into are seen without the overlay."""

import shutil
from pathlib import Path
from typing import Dict

import pytest
from containers import Container, Make, make_squashfs

from hpcwrap.container import direct
from hpcwrap.environment import Mount

pytestmark = pytest.mark.privileged

ODD = "a b\udcff\\040"
both_ways = pytest.mark.parametrize("user_namespace", [False, True], ids=["host", "userns"])


@pytest.fixture(name="large")
def make_large_image(image_root: Path, tmp_path: Path) -> Path:
    """An image with directories in directories."""
    root = tmp_path / "large"
    shutil.copytree(image_root, root, symlinks=True)
    for path in ("usr/lib/python3/numpy", "usr/lib/small", "usr/share/doc/x"):
        (root / path).mkdir(parents=True)
        (root / path / "file").write_text("the image's\n")
    return make_squashfs(root)


def kinds(container: Container) -> Dict[str, str]:
    """Of the mounts inside: where → the kind of file system and the mount's options."""
    lines = container.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    words = [line.split() for line in lines]
    return {each[4]: f"{each[each.index('-') + 1]} {each[5]}" for each in words}


def file(path: Path, content: str = "the host's\n") -> Path:
    path.write_text(content)
    return path


@both_ways
def test_what_nothing_was_put_into_is_the_squashfs(
    make: Make, large: Path, user_namespace: bool
) -> None:
    seen = kinds(make(image=large, user_namespace=user_namespace))
    assert seen["/usr"].startswith("squashfs ro,nosuid,nodev")
    assert seen["/"].startswith("overlay ro,")
    assert "/usr/lib" not in seen


@both_ways
def test_beside_a_mount_point_that_was_made_the_rest_is_the_squashfs(
    make: Make, large: Path, tmp_path: Path, user_namespace: bool
) -> None:
    mount = Mount(str(file(tmp_path / "x")), "/usr/lib/new/x", "bind", ("ro",), "test.yaml:3")
    container = make([mount], image=large, user_namespace=user_namespace)
    seen = kinds(container)
    assert {"/usr", "/usr/lib"}.isdisjoint(seen)
    assert seen["/usr/share"].startswith("squashfs")
    assert seen["/usr/lib/python3"].startswith("squashfs")
    assert container.run("cat", "/usr/lib/new/x").stdout == "the host's\n"
    for path in ("lib/python3/numpy", "lib/small", "share/doc/x"):
        assert container.run("cat", f"/usr/{path}/file").stdout == "the image's\n"


def test_what_is_mounted_in_the_image_is_not_covered(
    make: Make, large: Path, tmp_path: Path
) -> None:
    target = "/usr/lib/python3/numpy/file"
    mount = Mount(str(file(tmp_path / "x")), target, "bind", ("ro",), "test.yaml:3")
    container = make([mount], image=large, user_namespace=False)
    assert container.run("cat", target).stdout == "the host's\n"
    assert kinds(container)["/usr/share"].startswith("squashfs")


def test_a_mount_below_a_name_that_the_kernel_escapes_is_not_covered(
    make: Make, image_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "odd"
    shutil.copytree(image_root, root, symlinks=True)
    (root / ODD / "deep" / "er").mkdir(parents=True)
    mount = Mount(str(file(tmp_path / "x").parent), f"/{ODD}/deep/er", "bind", (), "test.yaml:3")
    container = make([mount], image=make_squashfs(root), user_namespace=False)
    assert container.run("cat", f"/{ODD}/deep/er/x").stdout == "the host's\n"


def test_a_mount_through_a_link_of_the_image_is_not_covered(
    make: Make, image_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "linked"
    shutil.copytree(image_root, root, symlinks=True)
    (root / "usr/lib/deep").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    mount = Mount(str(file(tmp_path / "x")), "/lib/deep/x", "bind", (), "test.yaml:3")
    container = make([mount], image=make_squashfs(root), user_namespace=False)
    assert container.run("cat", "/usr/lib/deep/x").stdout == "the host's\n"


def test_an_image_of_many_directories_makes_few_mounts(
    make: Make, image_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "many"
    shutil.copytree(image_root, root, symlinks=True)
    for number in range(direct.MOST_MOUNTS + 50):
        (root / str(number) / "below").mkdir(parents=True)
    seen = kinds(make(image=make_squashfs(root), user_namespace=False))
    # The image's own mount is in /tmp here, which is the host's inside.
    bound = [path for path, kind in seen.items() if kind.startswith("squashfs")]
    bound = [path for path in bound if not path.startswith("/tmp/")]
    assert len(bound) == direct.MOST_MOUNTS


def test_mount_points_as_the_kernel_writes_them() -> None:
    head = "36 35 0:5 /"
    lines = [f"{head} /stage/root{path} rw - tmpfs x rw" for path in ("", "/a\\040b", "/c\\134d")]
    lines.append(f"{head} /stage/rootless rw - tmpfs x rw")
    assert direct.mount_points("\n".join(lines), "/stage/root") == ["/a b", "/c\\d"]
