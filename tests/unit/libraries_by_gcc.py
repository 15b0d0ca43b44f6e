"""Shared libraries compiled for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Sequence


def compile_library(
    path: Path,
    source: str,
    *,
    soname: str = "",
    needs: Sequence[Path] = (),
    options: Sequence[str] = (),
) -> Path:
    """Compile C into a shared library; `needs` are libraries that it is linked with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = [f"-Wl,-soname,{soname}"] if soname else []
    linked = [str(library) for library in needs]
    compiler = ["gcc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-x", "c", "-"]
    subprocess.run(
        [*compiler, *name, *options, "-o", path, "-x", "none", *linked],
        input=source.encode(),
        check=True,
    )
    return path
