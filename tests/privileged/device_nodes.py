"""Device nodes for a /dev of a test's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make_node(path: Path, mode: int, device: int) -> None:
    """Make a node with its type and mode, whatever the umask is."""
    path.parent.mkdir(exist_ok=True)
    os.mknod(path, mode, device)
    path.chmod(stat.S_IMODE(mode))
