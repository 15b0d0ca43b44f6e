"""The host's libraries for fabrics in an image, and the drivers that they load by path."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple, Tuple

from hpcwrap.container.elf import file_version, format_version
from hpcwrap.container.hostlibraries import HostLibraries, mount_one, open_target
from hpcwrap.container.imagelibraries import ImageLibraries
from hpcwrap.container.operations import Workshop
from hpcwrap.errors import UserError


class HostFabric(NamedTuple):
    """Libraries, where the image's linker looks; drivers, at the paths that they have on the host.

    A library of the host has its drivers' directory built in.
    """

    libraries: HostLibraries
    drivers: Tuple[str, ...]

    def describe(self) -> str:
        """Say in one line what the operation does."""
        own = " ".join(self.libraries.own)
        return f"the host's {own}, what they need, and {len(self.drivers)} drivers"

    def execute(self, workshop: Workshop) -> None:
        """Check, and mount.  Raises UserError."""
        image = ImageLibraries(workshop.root, self.libraries.closure.kind)
        self.libraries.check(image)
        if image.home() is None:
            return  # static programs only, which load nothing
        self.check_versions(image)
        for path in self.drivers:
            mount_driver(workshop.root, path)
        self.libraries.execute(workshop)

    def check_versions(self, image: ImageLibraries) -> None:
        """Raise UserError where the image's programs may need more than the host's library has.

        The second number of libibverbs.so.1.14.44.0 is the newest of its versions of functions;
        libfabric and the others count likewise, as libtool has it.
        """
        for library in self.libraries.closure.libraries:
            host = file_version(os.path.basename(library.path))[:2]
            has = [each.version[:2] for each in image.find(library.name)]
            newest = max(has, default=())
            if library.name in self.libraries.own and newest > host:
                raise UserError(
                    f"cannot use the host's libraries for {self.libraries.purpose} in this image: "
                    f"its {library.name} is {format_version(newest)}, "
                    f"the host's {format_version(host)}",
                    "use `fabric: image`, or an older image",
                )


def mount_driver(root: int, path: str) -> None:
    """Mount a driver at its own path in the image's tree."""
    try:
        target = open_target(root, path)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return  # an operation before this one has put the host's file there
        raise
    mount_one(path, target)
    os.close(target)
