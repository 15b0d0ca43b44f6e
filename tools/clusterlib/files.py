"""Small files: those of the state directory, and those that a node has for itself."""

from __future__ import annotations

import os


def read(path: str) -> str:
    """The text of a small file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write a small file that all may read, in place of what was there, a link included."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def write_secret(path: str, content: bytes) -> None:
    """Write a file that only root may read, from its first moment on."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def owner_ids(root: str, name: str) -> tuple[int, int]:
    """A system user's numbers in the node's own passwd file, which need not be the host's."""
    for line in read(f"{root}/etc/passwd").splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2]), int(fields[3])
    raise FileNotFoundError(f"{root}/etc/passwd has no user {name}: is its package installed?")
