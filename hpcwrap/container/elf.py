"""Shared libraries as files: what one is called, what it needs, what it offers (elf(5), ld.so(8)).

pyelftools does the reading.  It is imported where a file is read: most prologs read none, and the
import costs more than the rest of them.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO, FrozenSet, Iterable, List, Mapping, NamedTuple, Tuple

Version = Tuple[int, ...]
"""A version as numbers: 2.9 is before 2.31."""

MAGIC = b"\x7fELF"
HEADER_SIZE = 20
"""Bytes of an ELF header up to and with e_machine."""

BASE_VERSION = 1
"""VER_FLG_BASE: the library's own name among its versions."""

FUNCTIONS = ("STT_FUNC", "STT_GNU_IFUNC", "STT_LOOS")
STRONG = ("STB_GLOBAL", "STB_WEAK", "STB_GNU_UNIQUE")


class NotElfError(ValueError):
    """A file is no shared library, or a broken one."""


class Kind(NamedTuple):
    """Which processes can load a library: class (1 for 32 bits, 2 for 64) and machine (elf.h)."""

    elf_class: int
    machine: int


class Elf(NamedTuple):
    """The dynamic section of a shared library; `glibc` is the newest version of it that it needs.

    `search` are its own directories (RPATH, RUNPATH) as they are written, with $ORIGIN.  `defines`
    are the versions of symbols that it offers, such as LIBNL_3_5.
    """

    kind: Kind
    soname: str
    needed: Tuple[str, ...]
    search: Tuple[str, ...]
    glibc: Version
    defines: Tuple[str, ...] = ()


def read_kind(header: bytes) -> Kind:
    """Read the first 20 bytes of a file.  Raises NotElfError."""
    if len(header) < HEADER_SIZE or not header.startswith(MAGIC) or header[5] not in (1, 2):
        raise NotElfError("it is no ELF file")
    order = "<" if header[5] == 1 else ">"
    return Kind(header[4], struct.unpack_from(order + "H", header, 18)[0])


def read(path: str) -> Elf:
    """Read a library of the host.  Raises NotElfError, OSError."""
    with open(path, "rb") as file:
        kind = read_kind(file.read(HEADER_SIZE))
        return _read_dynamic(file, kind)


def read_exports(file: BinaryIO) -> FrozenSet[str]:
    """Names of the functions that a library offers.  Raises NotElfError."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    try:
        names = [
            symbol.name
            for segment in ELFFile(file).iter_segments("PT_DYNAMIC")
            if isinstance(segment, DynamicSegment)
            for symbol in segment.iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF" and _is_function(symbol["st_info"])
        ]
    except (ELFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise NotElfError(f"it is a broken ELF file: {error}") from error
    return frozenset(names)


def _is_function(info: Mapping[str, str]) -> bool:
    return info["type"] in FUNCTIONS and info["bind"] in STRONG


def parse_version(text: str) -> Version:
    """Read the numbers at the start of a version.

    >>> parse_version("2.31-13") > parse_version("2.9")
    True
    """
    match = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def format_version(version: Version) -> str:
    """Write a version as people do."""
    return ".".join(str(part) for part in version)


def file_version(name: str) -> Version:
    """Read the version at the end of a library's file name, as libtool and others write it.

    >>> file_version("libmpi.so.40.30.4")
    (40, 30, 4)
    """
    return parse_version(name.rpartition(".so.")[2])


def newest_glibc(versions: Iterable[str]) -> Version:
    """The newest GLIBC_x.y of a library's needs; its private symbols have no number."""
    found = [parse_version(text[len("GLIBC_") :]) for text in versions if text[:6] == "GLIBC_"]
    return max(found, default=())


def _read_dynamic(file: BinaryIO, kind: Kind) -> Elf:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(file)
        tags = [
            (tag.entry.d_tag, tag)
            for segment in elf.iter_segments("PT_DYNAMIC")
            for tag in segment.iter_tags()  # type: ignore[attr-defined]
        ]
        versions, defines = _needed_versions(elf), _defined_versions(elf)
    except (ELFError, ValueError, KeyError, AttributeError) as error:
        raise NotElfError(f"it is a broken ELF file: {error}") from error
    search = [tag.runpath for name, tag in tags if name == "DT_RUNPATH"]
    search = search or [tag.rpath for name, tag in tags if name == "DT_RPATH"]
    return Elf(
        kind,
        soname=next((tag.soname for name, tag in tags if name == "DT_SONAME"), ""),
        needed=tuple(tag.needed for name, tag in tags if name == "DT_NEEDED"),
        search=tuple(path for text in search for path in text.split(":") if path),
        glibc=newest_glibc(versions),
        defines=tuple(defines),
    )


def _needed_versions(elf: object) -> List[str]:
    from elftools.elf.gnuversions import GNUVerNeedSection

    return [
        auxiliary.name
        for section in elf.iter_sections()  # type: ignore[attr-defined]
        if isinstance(section, GNUVerNeedSection)
        for _, auxiliaries in section.iter_versions()
        for auxiliary in auxiliaries
    ]


def _defined_versions(elf: object) -> List[str]:
    from elftools.elf.gnuversions import GNUVerDefSection

    return [
        next(auxiliaries).name
        for section in elf.iter_sections()  # type: ignore[attr-defined]
        if isinstance(section, GNUVerDefSection)
        for definition, auxiliaries in section.iter_versions()
        if not definition["vd_flags"] & BASE_VERSION
    ]
