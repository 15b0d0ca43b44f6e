"""`mpi: host`: the image's MPI library gives way to the host's, of the same ABI.

`addition` is the host's side, planned before anything is built; `HostMpi` looks at the image.
Which libraries may stand for which others, and how that is checked: docs/decisions/0081.
"""

from __future__ import annotations

import os
import re
from typing import FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap.container import elf, libraries
from hpcwrap.container.addition import Addition
from hpcwrap.container.elf import Version, file_version, format_version
from hpcwrap.container.hostlibraries import HostLibraries
from hpcwrap.container.imagelibraries import Found, ImageLibraries
from hpcwrap.container.libraries import Closure
from hpcwrap.container.operations import Workshop
from hpcwrap.environment import Variable
from hpcwrap.errors import SiteError, UserError

CURE = "say `mpi: image`, or use an image that fits"

DIRECTORIES = (
    *("/usr/lib64/*/lib", "/usr/lib64/mpi/gcc/*/lib64", "/usr/lib/*/lib", "/usr/local/*/lib"),
    *("/opt/*/lib", "/opt/*/lib64", "/opt/*/*/lib", "/opt/*/*/lib64", "/opt/conda/envs/*/lib"),
)
"""Where images have an MPI that their dynamic linker does not know: Red Hat's and SUSE's modules,
NVIDIA's, conda, what people compile."""

API = re.compile(r"P?MPIX?_[A-Z]\w*")
"""A function of MPI's C interface; all else that a libmpi exports is its own affair."""


class Family(NamedTuple):
    """Libraries of one ABI: programs linked with one of them run with any other.

    `names` are those of the C library, by which programs know it.  `own` are libraries of the same
    build, which go together with it.
    """

    title: str
    names: Tuple[str, ...]
    own: str


FAMILIES = (
    Family(
        "Open MPI",
        ("libmpi.so.40",),
        r"lib(mpi|mpi_\w+|mpi_usempi[\w-]+|open[-_]\w+|oshmem|ompitrace|mca_common_\w+"
        r"|uc[mpst])\.so\.\d+",
    ),
    Family(
        "MPICH",
        ("libmpi.so.12", "libmpich.so.12"),
        r"lib(mpi|mpich|mpifort|mpichfort|mpichf90|mpicxx|mpichcxx|mpl|opa|pmi2?|uc[mpst])\.so\.\d+",
    ),
)

ALIASES = (
    ("libmpi.so.12", "libmpich.so.12"),
    ("libmpifort.so.12", "libmpichfort.so.12", "libmpichf90.so.12"),
    ("libmpicxx.so.12", "libmpichcxx.so.12"),
)
"""Names that one library has: the ABI initiative of MPICH chose the first, Debian kept others."""


def addition(configured: Sequence[str]) -> Addition:
    """Plan the swap; `configured` are the site's MPI libraries, none: what ldconfig(8) knows.

    Raises SiteError when the host has no MPI library.
    """
    refuse_doubles(configured)
    hosts = [host_mpi(path) for path in configured or default_libraries()]
    if not hosts:
        names = ", ".join(name for family in FAMILIES for name in family.names)
        raise SiteError(
            f"cannot find an MPI library of the host: none of {names} is known to ldconfig",
            "name it in the setting mpi_libraries",
        )
    # It would send the host's library to directories of the image's.
    forget = Variable("unset", "OPAL_PREFIX", "")
    return Addition(operations=(HostMpi(tuple(hosts)),), variables=(forget,))


def default_libraries() -> List[str]:
    """The host's library of each family, as programs of the host find it."""
    found = libraries.kept_find([name for family in FAMILIES for name in family.names])
    families = [[found[name] for name in family.names if name in found] for family in FAMILIES]
    return [paths[0] for paths in families if paths]


def refuse_doubles(configured: Sequence[str]) -> None:
    """Raise SiteError for two libraries of one family: which one would it be?"""
    families = [family_of(os.path.realpath(path)).title for path in configured]
    for title in families:
        if families.count(title) > 1:
            raise SiteError(
                f"cannot choose the host's MPI: mpi_libraries names two libraries of {title}",
                "leave one of them out",
            )


class Host(NamedTuple):
    """An MPI of the host: its C library's full path, and all that it needs in an image.

    `guests` are the interfaces for other languages: they and their needs (libgfortran) count only
    where the image has them.
    """

    family: Family
    path: str
    libraries: HostLibraries
    guests: Optional[HostLibraries] = None

    @property
    def version(self) -> Version:
        """The number at the end of its file's name: (40, 30, 4)."""
        return file_version(os.path.basename(self.path))


def host_mpi(path: str) -> Host:
    """Find out what an MPI library of the host needs.  Raises SiteError."""
    path = os.path.realpath(path)
    family = family_of(path)
    guests = find_guests(path, family)
    return Host(
        family,
        path,
        bring(family, libraries.kept_closure([path], modules=True)),
        bring(family, libraries.kept_closure(guests)) if guests else None,
    )


def bring(family: Family, closure: Closure) -> HostLibraries:
    """The operation that puts libraries of a family into an image."""
    own = tuple(each.name for each in closure.libraries if re.fullmatch(family.own, each.name))
    return HostLibraries(
        family.title,
        closure,
        own=own,
        directories=DIRECTORIES,
        cure=CURE,
        guests=tuple(filter(is_guest, own)),
        aliases=ALIASES,
    )


def family_of(path: str) -> Family:
    """The family that a file belongs to by its name.  Raises SiteError."""
    name = os.path.basename(path)
    for family in FAMILIES:
        if any(name == known or name.startswith(f"{known}.") for known in family.names):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.names)
    raise SiteError(
        f"cannot use {path} as the host's MPI library: its name tells no ABI that is known",
        f"name one of {known} in mpi_libraries",
    )


def find_guests(path: str, family: Family) -> List[str]:
    """Libraries beside the C library for other languages, with the same number in their names."""
    directory = os.path.dirname(path)
    major = f".so.{file_version(os.path.basename(path))[0]}"
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [
        os.path.join(directory, name)
        for name in names
        if name.endswith(major) and re.fullmatch(family.own, name) and is_guest(name)
    ]


def is_guest(name: str) -> bool:
    """True for the interface of another language than C: of use only where an image has it."""
    return re.match(r"lib(mpi_|mpifort|mpich(fort|f90|cxx)|mpicxx)(?!java)", name) is not None


class HostMpi(NamedTuple):
    """The image's MPI libraries give way to those of the host that are of the same family."""

    hosts: Tuple[Host, ...]

    def describe(self) -> str:
        """Say in one line what the operation does."""
        found = " and ".join(f"{host.family.title} ({host.path})" for host in self.hosts)
        return f"host's {found} in place of the image's"

    def execute(self, workshop: Workshop) -> None:
        """Check, and mount.  Raises UserError."""
        swapped = 0
        for host in self.hosts:
            image = ImageLibraries(workshop.root, host.libraries.closure.kind, DIRECTORIES)
            found = [each for name in host.family.names for each in image.find(name)]
            for each in found:
                check(host, each, image, workshop)
            if found:
                swap(host, image, workshop)
                swapped += 1
        if not swapped:
            raise self._no_match(workshop)

    def _no_match(self, workshop: Workshop) -> UserError:
        image = ImageLibraries(workshop.root, self.hosts[0].libraries.closure.kind, DIRECTORIES)
        theirs = [
            family.title for family in FAMILIES if any(image.find(name) for name in family.names)
        ]
        ours = " or ".join(dict.fromkeys(host.family.title for host in self.hosts))
        has = f"the image's MPI is {theirs[0]}" if theirs else "the image has no MPI library"
        return UserError(f"cannot use the host's MPI, which is {ours}: {has}", CURE)


def swap(host: Host, image: ImageLibraries, workshop: Workshop) -> None:
    """Mount the host's libraries.  Raises UserError."""
    guests = host.guests
    has_guests = guests and any(guests.find(name, image) for name in guests.guests)
    host.libraries.bring(workshop, image)
    if guests and has_guests:
        guests.bring(workshop, image)


def check(host: Host, found: Found, image: ImageLibraries, workshop: Workshop) -> None:
    """Raise UserError unless programs linked with the image's library run with the host's.

    By the numbers of the two files, or function by function where one has none: Intel MPI calls
    all of its files libmpi.so.12.0.0.
    """
    fits = is_new_enough(host.version, found.version)
    if fits:
        return
    theirs, ours = os.path.basename(found.file), os.path.basename(host.path)
    refusal = f"cannot use the host's {host.family.title} in place of the image's {found.path}"
    if fits is False:
        raise UserError(
            f"{refusal}: the host's is older ({ours}, the image's is {theirs}: "
            f"{format_version(host.version[1:2])} < {format_version(found.version[1:2])})",
            CURE,
        )
    missing = functions(image.exports(found.path, workshop.user)) - functions(
        host_exports(host.path)
    )
    if missing:
        raise UserError(
            f"{refusal}: the host's {ours} lacks {len(missing)} of its functions, "
            f"{min(missing)} for one",
            CURE,
        )


def is_new_enough(host: Version, image: Version) -> Optional[bool]:
    """Whether the host's library has all that the image's has; None when numbers do not tell.

    The second number counts added functions (libtool's age, for libraries of one soname).
    """
    if len(host) < 2 or len(image) < 2 or host[1:] == (0, 0) or image[1:] == (0, 0):
        return None
    return host[1] >= image[1]


def host_exports(path: str) -> FrozenSet[str]:
    """Functions of a library of the host.  Raises SiteError."""
    try:
        with open(path, "rb") as file:
            return elf.read_exports(file)
    except (OSError, elf.NotElfError) as error:
        raise SiteError(f"cannot read the library {path}: {error}") from error


def functions(exports: FrozenSet[str]) -> FrozenSet[str]:
    """The functions of MPI's C interface among a library's symbols."""
    return frozenset(name for name in exports if API.fullmatch(name))
