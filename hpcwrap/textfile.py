"""Small text files of the kernel and of other programs, which may or may not be there."""

from __future__ import annotations

from contextlib import suppress


def read_text(path: str) -> str:
    """A file's text; empty where it is not there or cannot be read."""
    with suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
    return ""
