"""Calls of the kernel, on a machine where other things go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Iterator

import pytest

from hpcwrap.container import syscalls

CALLS = 20000


@pytest.fixture(name="busy")
def renaming(tmp_path: Path) -> Iterator[None]:
    """Another process that renames directories all the time, as file servers and builds do."""
    child = os.fork()
    if child == 0:
        names = [tmp_path / "one", tmp_path / "other"]
        names[0].mkdir()
        while True:
            names[0].rename(names[1])
            names.reverse()
    yield
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_link_upwards_is_followed_on_a_busy_machine(tmp_path: Path, busy: None) -> None:
    """openat2(2), EAGAIN: the kernel leaves it to the caller to try again."""
    image = tmp_path / "image"
    (image / "lib/drivers").mkdir(parents=True)
    (image / "lib/real").touch()
    (image / "lib/drivers/link").symlink_to("../real")
    root = os.open(image, os.O_PATH)
    for _ in range(CALLS):
        os.close(syscalls.openat2(root, "lib/drivers/link", os.O_PATH, syscalls.RESOLVE_IN_ROOT))
    os.close(root)
