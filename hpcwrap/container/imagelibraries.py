"""Libraries of an image: where its dynamic linker looks, what is there, which glibc it has.

Everything is looked at through the open root, as rootfs.py has it; nothing of the image is run.
"""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import re
import resource
import stat
from contextlib import suppress
from typing import (
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
)

from hpcwrap.container import elf, rootfs
from hpcwrap.container.elf import Kind, NotElfError, Version
from hpcwrap.job import User

LIBC = "libc.so.6"
LIBC_SIZE = LIBRARY_SIZE = 16 << 20
MUSL = "ld-musl-*"

MULTIARCH = {3: "i386", 62: "x86_64", 183: "aarch64", 21: "powerpc64le", 243: "riscv64"}
"""Debian's names of machines, by their numbers in elf.h."""

ANSWER_SIZE = 64 << 20
"""More than all the names of any library."""

READER_LIMITS = {resource.RLIMIT_CPU: 20, resource.RLIMIT_AS: 2 << 30}

MOST_INCLUDES = 100
CONF_SIZE = 1 << 16
"""Files and patterns of ld.so.conf that count, and bytes of each: more has no image, but one whose
files include each other to keep root busy."""

MOST_DIRECTORIES = 1000
MOST_PARTS = 16
MOST_NAMES = 5000
"""Names that a pattern may look at on its way: with links to where they lie it would not end."""

MORE = ("/usr/local/lib", "/usr/local/lib64")

GLIBC_TEXT = re.compile(
    rb"GNU C Library [^\n]{0,200}(?:release|development) version ([0-9]+\.[0-9]+)"
)
"""What every glibc says when it is run as a program: csu/version.c."""


class Found(NamedTuple):
    """A library in an image: where it is looked for, which file that is, the host's already or not.

    `file` is a path without links, from a root that is nobody's.
    """

    path: str
    file: str
    mounted: bool = False

    @property
    def version(self) -> Version:
        """The version that its file's name ends with; empty where it has none."""
        return elf.file_version(os.path.basename(self.file))


class ImageLibraries:
    """The libraries of one kind in an image."""

    def __init__(self, root: int, kind: Kind, more: Sequence[str] = ()) -> None:
        """`root` is open; `more` are patterns of directories that the linker does not know."""
        self.root = root
        self.kind = kind
        self.system = _system_directories(kind)
        own = [path for pattern in (*MORE, *more) for path in expand(root, pattern)]
        # What a mount of the host shows, or a link that leads there, is not the image's.
        wanted = dict.fromkeys([*self.system, *configured(root), *own])
        there = (path for path in wanted if _is_own_directory(root, path))
        self.directories = list(itertools.islice(there, MOST_DIRECTORIES))
        libc = (path for path in self.system if self._look(os.path.join(path, LIBC)))
        self._home = next(libc, None)

    def find(self, name: str) -> List[Found]:
        """All of that name, the linker's first; a file that is in two directories only once."""
        found: Dict[str, Found] = {}
        for directory in self.directories:
            each = self._look(os.path.join(directory, name))
            if each:
                found.setdefault(each.file, each)
        return list(found.values())

    def home(self) -> Optional[str]:
        """The directory of the C library: the linker looks there without being told.

        None in an image without one, whose programs load no libraries.
        """
        return self._home

    def glibc(self) -> Version:
        """The version of the image's glibc; empty where it cannot be told."""
        home = self.home()
        if home is None:
            return ()
        content = rootfs.read_file(self.root, os.path.join(home, LIBC), LIBC_SIZE)
        match = GLIBC_TEXT.search(content)
        return elf.parse_version(match.group(1).decode()) if match else ()

    def has_musl(self) -> bool:
        """True when the image's programs use musl, whose libraries glibc's cannot join."""
        return bool(expand(self.root, f"/lib/{MUSL}"))

    def has(self, found: Found, versions: Sequence[str]) -> bool:
        """Whether a library has all of these versions of symbols; they stand in its text."""
        content = rootfs.read_file(self.root, found.path, LIBRARY_SIZE) if versions else b""
        return all(b"\0" + version.encode() + b"\0" in content for version in versions)

    def exports(self, path: str, user: User) -> FrozenSet[str]:
        """Names of the functions that a library offers; none where it is broken.

        Whoever made the image has a say in what the reader does, so it reads with the user's
        rights, and neither for long nor in much memory.
        """
        file = rootfs.open_own(self.root, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return frozenset(_read_as(user, file).split())
        finally:
            os.close(file)

    def _look(self, path: str) -> Optional[Found]:
        try:
            fd = rootfs.open_own(self.root, path, os.O_PATH)
        except OSError as error:
            # Crossing into a mount: an operation before this one has put the host's file there.
            return Found(path, path, True) if error.errno == errno.EXDEV else None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or not self._fits(fd):
                return None
            return Found(path, os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)

    def _fits(self, fd: int) -> bool:
        with open(f"/proc/self/fd/{fd}", "rb") as file, suppress(NotElfError):
            return elf.read_kind(file.read(elf.HEADER_SIZE)) == self.kind
        return False


def _read_as(user: User, file: int) -> str:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _print_exports(user, file, theirs)
    os.close(theirs)
    with open(ours, encoding="utf-8", errors="replace") as answer:
        text = answer.read(ANSWER_SIZE)
    os.waitpid(child, 0)
    return text


def _print_exports(user: User, file: int, answer: int) -> NoReturn:
    """Write the names to `answer`, and end; a process's edge."""
    with suppress(Exception):
        for limit, value in READER_LIMITS.items():
            resource.setrlimit(limit, (value, value))
        from elftools.elf import dynamic  # noqa: F401  (where the user may not read it)

        os.setgroups(list(user.groups))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        with open(file, "rb", closefd=False) as library, open(answer, "w", encoding="utf-8") as out:
            out.write(" ".join(elf.read_exports(library)))
    os._exit(0)


def configured(root: int, path: str = "/etc/ld.so.conf", depth: int = 4) -> List[str]:
    """Directories that an image's ld.so.conf names, with the files that it includes."""
    return list(_configured(root, path, depth, Included({}, {})))


class Included(NamedTuple):
    """The patterns and files that an ld.so.conf has named so far."""

    patterns: Dict[str, None]
    files: Dict[str, None]


def _configured(root: int, path: str, depth: int, known: Included) -> Iterator[str]:
    text = rootfs.read_file(root, path, CONF_SIZE).decode(errors="replace")
    for words in (line.partition("#")[0].split() for line in text.splitlines()):
        if words[:1] == ["include"] and depth:
            patterns = [os.path.join(os.path.dirname(path), word) for word in words[1:]]
            files = (file for each in _new(patterns, known.patterns) for file in expand(root, each))
            for file in _new(files, known.files):
                yield from _configured(root, file, depth - 1, known)
        elif words and words[0].startswith("/"):
            yield words[0].rstrip("/")


def _new(paths: Iterable[str], known: Dict[str, None]) -> Iterator[str]:
    """Those that were not there before, as long as there are not too many."""
    for path in paths:
        if len(known) < MOST_INCLUDES and path not in known:
            known[path] = None
            yield path


def expand(root: int, pattern: str) -> List[str]:
    """Paths in an image that a pattern of the shell matches, sorted; a plain path is itself."""
    found = [""]
    parts = pattern.strip("/").split("/")
    for part in parts if len(parts) <= MOST_PARTS else ():
        if re.search(r"[*?[]", part):
            found = _matching(root, found, part)
        else:
            found = [f"{directory}/{part}" for directory in found]
    return [path for path in found if path]


def _matching(root: int, directories: Iterable[str], pattern: str) -> List[str]:
    found: List[str] = []
    looked_at = 0
    for directory in directories:
        names = _names(root, directory or "/")
        found += [f"{directory}/{name}" for name in sorted(fnmatch.filter(names, pattern))]
        looked_at += 1 + len(names)
        if looked_at > MOST_NAMES:
            break
    return found


def _is_own_directory(root: int, path: str) -> bool:
    try:
        os.close(rootfs.open_own(root, path, rootfs.DIRECTORY))
    except OSError:
        return False
    return True


def _names(root: int, directory: str) -> List[str]:
    try:
        fd = rootfs.open_own(root, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _system_directories(kind: Kind) -> List[str]:
    """Where every dynamic linker looks at last: Debian's way, then that of the others."""
    multiarch = f"{MULTIARCH.get(kind.machine, 'none')}-linux-gnu"
    wide = ["/lib64", "/usr/lib64"] if kind.elf_class == 2 else []
    return [f"/lib/{multiarch}", f"/usr/lib/{multiarch}", *wide, "/lib", "/usr/lib"]
