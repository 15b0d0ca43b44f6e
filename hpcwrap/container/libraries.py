"""Libraries of the host and all that they need, found as the dynamic linker does it (ld.so(8)).

What was found is kept on the node and used again while no file of it has changed: reading a
hundred libraries takes a second, looking whether they are the same a millisecond.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import paths
from hpcwrap.container import elf
from hpcwrap.container.elf import Elf, Kind, NotElfError, Version
from hpcwrap.container.modules import Companion, companions, is_guarded, module_files
from hpcwrap.errors import SiteError
from hpcwrap.record import publish

LD_CACHE = "/etc/ld.so.cache"

GLIBC = re.compile(
    r"(libc|libm|libmvec|libpthread|libdl|librt|libutil|libanl|libresolv|libBrokenLocale"
    r"|libnss_[a-z]+|libthread_db|ld-linux[a-z0-9_-]*|ld64)\.so\.[0-9]+"
)
"""Parts of the C library, which has to be of one piece, and so has to be the image's own."""


class Library(NamedTuple):
    """A library of the host: the name that it is loaded by, its file, the glibc that it needs.

    `defines` are the versions of symbols that it offers.
    """

    name: str
    path: str
    glibc: Version
    defines: Tuple[str, ...] = ()


class Closure(NamedTuple):
    """Libraries of one kind with all that they need.

    `module` is that one of their modules which needs the newest glibc.  `companions` are the
    directories that they need beside.
    """

    kind: Kind
    libraries: Tuple[Library, ...]
    module: Optional[Library] = None
    companions: Tuple[Companion, ...] = ()

    @property
    def newest(self) -> Library:
        """The library or module that needs the newest glibc."""
        return newest([*self.libraries, *([self.module] if self.module else [])])


def kept_closure(
    files: Sequence[str],
    optional: Sequence[str] = (),
    *,
    modules: bool = False,
    kept: str = paths.LIBRARIES,
) -> Closure:
    """As `closure`, from what an earlier call on this node found, while that is still so."""
    asked = [list(files), list(optional), modules]
    path = os.path.join(kept, f"{_short_name(files)}.json")
    found = _read_kept(path, asked)
    if found is None:
        found = closure(files, optional, modules=modules)
        _keep(path, asked, found)
    return found


def closure(
    files: Sequence[str], optional: Sequence[str] = (), *, modules: bool = False
) -> Closure:
    """Libraries of the host with all that they need but the C library.

    `files` are full paths.  `optional` are modules, loaded by their path if at all, which do not
    count where something that they need is missing: what they need is among the libraries, they
    themselves are not.  With `modules` those that the libraries load are looked for and count so.
    Raises SiteError for what is not there.
    """
    search = Search([os.path.dirname(file) for file in files])
    found: Dict[str, Library] = {}
    for file in files:
        read = _read(file)
        found.setdefault(read.soname, _library(read.soname or os.path.basename(file), file, read))
        found.update(search.needs(file, read, found))
    loaded = _add_modules(search, found, optional)
    beside: Dict[Companion, None] = {}
    while modules:
        new = [each for each in _companions(found) if each not in beside]
        if not new:
            break
        beside.update(dict.fromkeys(new))
        loaded += _add_modules(search, found, module_files(new))
    module = newest(loaded) if loaded else None
    return Closure(_read(files[0]).kind, tuple(found.values()), module, tuple(beside))


def newest(libraries: Iterable[Library]) -> Library:
    """The one that needs the newest glibc."""
    return max(libraries, key=lambda library: library.glibc)


def _add_modules(search: Search, found: Dict[str, Library], files: Iterable[str]) -> List[Library]:
    """Add to `found` what modules need; the modules of which all is there."""
    usable = []
    for file in files:
        with contextlib.suppress(SiteError):
            module = _read(file)
            found.update(search.needs(file, module, found))
            usable.append(_library(os.path.basename(file), file, module))
    return usable


def _companions(found: Dict[str, Library]) -> List[Companion]:
    return [each for library in found.values() for each in companions(library.name, library.path)]


def kept_find(names: Sequence[str], kept: str = paths.LIBRARIES) -> Dict[str, str]:
    """Libraries of the host by their names, as its programs find them: name → full path."""
    path = os.path.join(kept, f"{_short_name(names)}.found.json")
    document = _read_document(path, list(names))
    if document is None:
        search = Search()
        found = {name: paths[0] for name in names for paths in [search.by_name(name)] if paths}
        document = {"found": found}
        _write_document(path, list(names), [LD_CACHE], document)
    return dict(document["found"])


class Search:
    """The dynamic linker's ways to a library: its user's own directories, then the cache.

    `first` are directories that come before the cache, as LD_LIBRARY_PATH would have it.
    """

    def __init__(self, first: Sequence[str] = ()) -> None:
        self._first = tuple(dict.fromkeys(first))
        self._cache: Optional[Dict[str, List[str]]] = None
        self._known: Dict[str, bool] = {}

    def by_name(self, name: str) -> List[str]:
        """All of that name in the cache, the preferred one first."""
        if self._cache is None:
            self._cache = read_ld_cache()
        return self._cache.get(name, [])

    def needs(self, file: str, user: Elf, known: Dict[str, Library]) -> Dict[str, Library]:
        """What a library needs, and what that needs, less what is known.  Raises SiteError."""
        found: Dict[str, Library] = {}
        waiting = [(file, user)]
        while waiting:
            file, user = waiting.pop()
            for name in user.needed:
                if GLIBC.fullmatch(name) or name in found or name in known:
                    continue
                path, read = self._find(name, file, user)
                found[name] = _library(name, path, read)
                waiting.append((path, read))
        return found

    def _find(self, name: str, file: str, user: Elf) -> Tuple[str, Elf]:
        origin = os.path.dirname(os.path.realpath(file))
        own = [re.sub(r"\$\{?ORIGIN\}?", origin, directory) for directory in user.search]
        # What a build left in it may be relative, or in /tmp: anyone's.
        near = [os.path.join(directory, name) for directory in self._safe((*own, *self._first))]
        for path in [*near, *self.by_name(name)]:
            with contextlib.suppress(OSError, NotElfError):
                read = elf.read(path)
                if read.kind == user.kind:
                    return path, read
        raise SiteError(
            f"cannot find the library {name}, which {file} needs", "install it, or run ldconfig"
        )

    def _safe(self, directories: Sequence[str]) -> List[str]:
        for each in directories:
            if each not in self._known:
                self._known[each] = each.startswith("/") and is_guarded(each)
        return [each for each in directories if self._known[each]]


def read_ld_cache() -> Dict[str, List[str]]:
    """Name → paths, as ldconfig(8) lists them: ``libm.so.6 (libc6,x86-64) => /lib/libm.so.6``."""
    from hpcwrap import run

    text = run.output([run.need_program("ldconfig", "libc-bin"), "-p"]).decode()
    found: Dict[str, List[str]] = {}
    for match in re.finditer(r"^\s+(\S+) \([^)]*\) => (/.*)$", text, re.MULTILINE):
        found.setdefault(match.group(1), []).append(match.group(2))
    return found


def _library(name: str, file: str, read: Elf) -> Library:
    return Library(name, os.path.realpath(file), read.glibc, read.defines)


def _read(file: str) -> Elf:
    try:
        return elf.read(file)
    except OSError as error:
        raise SiteError(f"cannot open the library {file}: {error.strerror}") from error
    except NotElfError as error:
        raise SiteError(f"cannot use the library {file}: {error}") from error


# What is kept


def _short_name(files: Iterable[str]) -> str:
    """A file name that says what is in it; different questions may share it and then alternate."""
    return "+".join(os.path.basename(file) for file in files)[:200]


def _read_kept(path: str, asked: List[Any]) -> Optional[Closure]:
    document = _read_document(path, asked)
    try:
        return _restore(document) if document else None
    except (ValueError, LookupError, TypeError):
        return None


def _read_document(path: str, asked: List[Any]) -> Optional[Dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            document: Dict[str, Any] = json.load(file)
        fresh = document["asked"] == asked and all(
            _stamp(name) == then for name, then in document["stamps"].items()
        )
        return document if fresh else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _restore(document: Dict[str, Any]) -> Closure:
    libraries = tuple(map(_restore_library, document["libraries"]))
    module = document["module"] and _restore_library(document["module"])
    beside = tuple(Companion(*each) for each in document["companions"])
    return Closure(Kind(*document["kind"]), libraries, module, beside)


def _restore_library(words: List[Any]) -> Library:
    name, path, glibc, defines = words
    return Library(name, path, tuple(glibc), tuple(defines))


def _keep(path: str, asked: List[Any], found: Closure) -> None:
    watched = {LD_CACHE, *asked[0], *asked[1]}
    watched.update(library.path for library in found.libraries)
    watched.update(directory.path for directory in found.companions)
    _write_document(path, asked, watched, found._asdict())


def _write_document(
    path: str, asked: List[Any], watched: Iterable[str], document: Dict[str, Any]
) -> None:
    """Keep what was found; a short cut only, so who may not write there goes without."""
    stamps = {name: _stamp(name) for name in watched}
    text = json.dumps({"asked": asked, "stamps": stamps, **document})
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        publish(path, text.encode(), 0o600)


def _stamp(path: str) -> Optional[List[int]]:
    """Size and times: what tells that a file is another one; None for no file.

    Not the inode's number: overlayfs, the root of many diskless nodes, gives another one each time
    that it has forgotten a file (kernel, filesystems/overlayfs.rst, "Inode properties").
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
