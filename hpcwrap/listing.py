"""Directories of files that people and package managers edit."""

from __future__ import annotations

import os
from typing import List, Tuple

from hpcwrap.errors import SiteError


def list_files(directory: str, suffixes: Tuple[str, ...]) -> List[str]:
    """Paths of a directory's files, sorted; none when there is no such directory.

    Skips what editors and package managers leave behind (`.#x.yaml`, `x.yaml~`, `x.yaml.rpmnew`).
    Raises SiteError when the directory cannot be read.
    """
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SiteError(f"cannot read {directory}: {error.strerror}") from error
    wanted = [name for name in names if name.endswith(suffixes) and name[0] != "."]
    return [os.path.join(directory, name) for name in wanted]
