"""Libraries of the host inside an image, beside those that it has or in place of them.

Why by mounts and not by LD_LIBRARY_PATH, and which of two libraries of one name is taken:
docs/decisions/0082.
"""

from __future__ import annotations

import os
from typing import Dict, List, NamedTuple, Sequence, Tuple

from hpcwrap.container import rootfs, syscalls
from hpcwrap.container.elf import Version, file_version, format_version
from hpcwrap.container.imagelibraries import Found, ImageLibraries
from hpcwrap.container.libraries import Closure, Library, newest
from hpcwrap.container.operations import ATTRIBUTES, Bind, Workshop
from hpcwrap.errors import UserError

OPTIONS = ("ro", "nosuid", "nodev")


class HostLibraries(NamedTuple):
    """Libraries of the host, put where the image's programs find them.

    `purpose` says what for, in messages: ``MPI``.  Those named in `own` are always the host's, of
    the others the newer one of host and image.  `directories` are patterns of places in the image
    where its dynamic linker does not look by itself.  `cure` is what a user may do when it fails.
    `guests` come only where the image has them.  `aliases` are sets of names that one library has.
    """

    purpose: str
    closure: Closure
    own: Tuple[str, ...] = ()
    directories: Tuple[str, ...] = ()
    cure: str = "use an image with a newer system"
    guests: Tuple[str, ...] = ()
    aliases: Tuple[Tuple[str, ...], ...] = ()

    def describe(self) -> str:
        """Say in one line what the operation does."""
        names = " ".join(library.name for library in self.closure.libraries)
        return f"host's libraries for {self.purpose}, where the image has no newer: {names}"

    def execute(self, workshop: Workshop) -> None:
        """Check, and mount.  Raises UserError."""
        self.bring(workshop, ImageLibraries(workshop.root, self.closure.kind, self.directories))

    def bring(self, workshop: Workshop, image: ImageLibraries) -> None:
        """Do it in an image that was looked at before.  Raises UserError."""
        mounts = [
            (library, path)
            for library in self.closure.libraries
            for path in self._places(library, image)
        ]
        self.check(image, [library for library, _ in mounts])
        for source, target in self._directories(mounts):
            Bind(source, target, OPTIONS, as_user=False).execute(workshop)
        mount_files(workshop.root, mounts)

    def check(self, image: ImageLibraries, placed: Sequence[Library] = ()) -> None:
        """Raise UserError where the image's programs could not load the libraries.

        Those of them that are `placed` count, or all.
        """
        module = [self.closure.module] if self.closure.module else []
        needing = newest([*placed, *module]) if placed else self.closure.newest
        check_glibc(image, needing, self.purpose, self.cure)

    def find(self, name: str, image: ImageLibraries) -> List[Found]:
        """What the image has of a library, under any of its names."""
        names = next((each for each in self.aliases if name in each), (name,))
        return [each for name in names for each in image.find(name)]

    def _places(self, library: Library, image: ImageLibraries) -> List[str]:
        found = self.find(library.name, image)
        if library.name in self.guests and not found:
            return []
        return places(library, image, found, own=library.name in self.own)

    def _directories(self, mounts: Sequence[Tuple[Library, str]]) -> List[Tuple[str, str]]:
        """Source and target of the directories that the libraries in `mounts` need."""
        return [
            (each.path, _beside(path, each.path) if each.beside else each.path)
            for each in self.closure.companions
            for path in [path for library, path in mounts if library.name == each.library][:1]
        ]


def check_glibc(image: ImageLibraries, newest: Library, purpose: str, cure: str = "") -> None:
    """Raise UserError when a library of the host needs a newer glibc than the image has.

    An image without any C library passes: it has static programs only, which load nothing.
    """
    what = f"cannot use the host's libraries for {purpose} in this image"
    if image.home() is None and image.has_musl():
        raise UserError(f"{what}: its C library is musl, and theirs glibc", cure)
    has: Version = image.glibc()
    if has and has < newest.glibc:
        needed, there = format_version(newest.glibc), format_version(has)
        name = os.path.basename(newest.path)
        raise UserError(f"{what}: {name} needs glibc {needed}, the image has {there}", cure)


def places(
    library: Library, image: ImageLibraries, found: Sequence[Found], *, own: bool
) -> List[str]:
    """Paths in the image on which a library of the host is to be mounted; `found` it has itself."""
    home = image.home()
    if home is None or any(each.mounted for each in found):
        return []
    if found and not own and not is_newer(library, found, image):
        return []
    paths = [each.path for each in found]
    at_home = any(os.path.dirname(path) in image.system for path in paths)
    # Where a program says that its libraries are elsewhere (RUNPATH), that holds for its own needs
    # and not for what those need: they are looked for at home (ld.so(8)).
    return paths if at_home else [*paths, os.path.join(home, library.name)]


def mount_files(root: int, mounts: Sequence[Tuple[Library, str]]) -> None:
    """Mount libraries on paths of the image; of two names of one file the first one counts."""
    targets: Dict[str, Tuple[Library, int]] = {}
    for library, path in mounts:
        target = open_target(root, path)
        file = os.readlink(f"/proc/self/fd/{target}")
        if file in targets:
            os.close(target)
        else:
            targets[file] = (library, target)
    # All are open before the first is mounted: a mounted file cannot be looked up any more.
    for library, target in targets.values():
        mount_one(library.path, target)
        os.close(target)


def _beside(path: str, directory: str) -> str:
    return os.path.join(os.path.dirname(path), os.path.basename(directory))


def is_newer(library: Library, found: Sequence[Found], image: ImageLibraries) -> bool:
    """True when the host's library is newer than all of the image's, the soname being the same.

    Whoever keeps a soname promises that the later library does for the earlier one's programs.
    Where numbers are equal, that one is the later which has all versions of symbols of the other:
    OpenSSL's files are libcrypto.so.3 from 3.0 on.
    """
    host = file_version(os.path.basename(library.path))
    if any(host < each.version for each in found):
        return False
    return all(host > each.version or not image.has(each, library.defines) for each in found)


def open_target(root: int, path: str) -> int:
    """Open a file of the image to mount on, made where missing.

    Raises OSError, EXDEV where a mount of the host is in the way.
    """
    try:
        return rootfs.open_own(root, path, os.O_PATH)
    except FileNotFoundError:
        rootfs.write_file(root, path, b"")
        return rootfs.open_own(root, path, os.O_PATH)


def mount_one(path: str, target: int) -> None:
    """Mount a file of the host, found through links, on what `target` is open on."""
    source = rootfs.open_source(path)
    tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(tree, sum(ATTRIBUTES[each] for each in OPTIONS), recursive=False)
    syscalls.move_mount(tree, target)
    for fd in (source, tree):
        os.close(fd)
