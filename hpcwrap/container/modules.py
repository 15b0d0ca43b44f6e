"""Directories that a library of the host loads modules from, or reads settings and texts in.

Compiled into the library or beside it: nobody names them, so they are found in the library's text.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Iterable, List, NamedTuple, Set, Tuple

MCA_USERS = re.compile(r"lib(mpi|open[-_]\w+|pmix|prrte)\.so\.\d+")
"""Open MPI's and PMIx's libraries have directories of modules, help texts and parameters."""

MCA_CONTENT = re.compile(r"(pmix_|prte_)?mca_\w+\.so|help-[\w-]+\.txt|[\w-]+-mca-params\.conf")

DIRECTORY_TEXT = re.compile(rb"(?<=\0)(/[\w./+-]{2,200})(?=\0)")
TEMPLATE_TEXT = re.compile(rb"\$\{\w+\}(/[\w./+-]{1,200})(?=\0)")
"""As `configure` left them: ``${libdir}/openmpi`` beside ``${prefix}/lib`` and ``/opt/openmpi``."""

NESTING = 3
"""``${libdir}/openmpi`` with libdir=``${exec_prefix}/lib`` and exec_prefix=/opt/openmpi."""

BESIDE = (
    (re.compile(r"libucs\.so\.\d+"), "ucx"),
    (re.compile(r"libfabric\.so\.\d+"), "libfabric"),
    (re.compile(r"libibverbs\.so\.\d+"), "libibverbs"),
)


class Companion(NamedTuple):
    """A directory of the host that a library needs at the same path, or `beside` itself."""

    library: str
    path: str
    beside: bool = False


def companions(name: str, path: str) -> List[Companion]:
    """The directories that the library `name` in the file `path` needs, as far as they exist."""
    if MCA_USERS.fullmatch(name):
        return [Companion(name, each) for each in mca_directories(path)]
    beside = [
        os.path.join(os.path.dirname(path), own) for who, own in BESIDE if who.fullmatch(name)
    ]
    return [Companion(name, each, True) for each in beside if os.path.isdir(each)]


def module_files(found: Iterable[Companion]) -> List[str]:
    """The modules in such directories: what they need has to come along."""
    return [
        os.path.join(each.path, name)
        for each in found
        for name in sorted(os.listdir(each.path))
        if re.search(r"\.so(\.\d+)*$", name)
    ]


def mca_directories(path: str) -> List[str]:
    """Directories with modules, help texts or parameters that a library's text leads to."""
    with open(path, "rb") as file:
        text = file.read()
    rests = {match.decode() for match in TEMPLATE_TEXT.findall(text)}
    bases = _existing(match.decode() for match in DIRECTORY_TEXT.findall(text))
    for _ in range(NESTING):
        bases |= _existing(base.rstrip("/") + rest for base in bases for rest in rests)
    # The names as the library has them: it will look there, though a link may be on the way.
    return sorted({os.path.normpath(base) for base in bases if _has_content(base)})


def is_guarded(path: str) -> bool:
    """Whether nobody but its owners and root decides what a path of the host leads to.

    A library's text names /tmp, too: what anyone may put there must not come into others' jobs.
    Below a sticky directory such as that only what is root's, or ours, is safe.
    """
    return all(map(_is_guarded_way, {path, os.path.realpath(path)}))


def _is_guarded_way(path: str) -> bool:
    anyones = False
    for end in [match.start() for match in re.finditer("/", path)] + [len(path)]:
        try:
            owner, mode = os.lstat(path[:end] or "/").st_uid, os.stat(path[:end] or "/").st_mode
        except OSError:
            return False
        if anyones and owner not in (0, os.geteuid()):
            return False
        anyones = bool(mode & stat.S_IWOTH)
        if anyones and not mode & stat.S_ISVTX:
            return False
    return not anyones


def _existing(paths: Iterable[str]) -> Set[str]:
    return {path for path in paths if os.path.isdir(path) and is_guarded(path)}


def _has_content(directory: str) -> bool:
    try:
        names: Tuple[str, ...] = tuple(os.listdir(directory))
    except OSError:
        return False
    return any(MCA_CONTENT.fullmatch(name) for name in names)
