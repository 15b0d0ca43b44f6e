"""Which mounts a container gets, and in which order: pure functions.

Four sources, later ones win on the same target: the system's, the scheduler's, the user's home
and work directory, and the site's (settings, then the environment).
"""

from __future__ import annotations

import re
from typing import Iterable, List, Mapping, Sequence, Tuple, Union

from hpcwrap.config import Settings
from hpcwrap.container.operations import ATTRIBUTES, Bind, Tmpfs
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError
from hpcwrap.job import Job

MountOperation = Union[Bind, Tmpfs]

# On every mount: a set-user-id program of the host would load its libraries from the user's image,
# as root.
NEVER = ("nosuid", "nodev")

SYSTEM = (
    Bind("/proc", "/proc", ("nosuid",), as_user=False),
    Bind("/sys", "/sys", ("nosuid",), as_user=False),
    # Brings /dev/shm, /dev/pts and /dev/mqueue with it: ranks of a node share memory with each
    # other, and a terminal that slurmstepd opened on the host keeps its name inside.
    Bind("/dev", "/dev", ("nosuid",), as_user=False),
    Bind("/tmp", "/tmp", NEVER, as_user=False),
    Bind("/var/tmp", "/var/tmp", NEVER, as_user=False, nofail=True),
)

# Work directories that are the image's own inside: binding them would hide the image.
IMAGE_TREES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "boot")
HOST_TREES = ("proc", "sys", "dev")
IMAGE_DIRECTORIES = ("/", "/var", "/opt", "/run")


def user_mounts(settings: Settings, job: Job) -> List[Bind]:
    """The user's home and the job's work directory, at the paths that they have on the host."""
    wanted = []
    if settings.mount_home and is_data(job.user.home):
        wanted.append((job.user.home, "mount_home"))
    if settings.mount_workdir and is_data(job.workdir):
        wanted.append((job.workdir, "mount_workdir"))
    return [Bind(path, path, NEVER, nofail=True, origin=origin) for path, origin in wanted]


def is_data(path: str) -> bool:
    """True when a directory of the host may appear inside without hiding a part of the image."""
    parts = _parts(path)
    if not path.startswith("/") or ".." in parts:
        return False
    return "/" + "/".join(parts) not in IMAGE_DIRECTORIES and (
        parts[0] not in IMAGE_TREES + HOST_TREES
    )


def make(mounts: Iterable[Mount], *, variables: Mapping[str, str]) -> List[MountOperation]:
    """Turn fstab lines into operations; `variables` fill $NAME in the sources and targets."""
    return [_make(mount, variables) for mount in mounts]


def arrange(mounts: Sequence[MountOperation]) -> List[MountOperation]:
    """Order mounts so that parents come before what lies below them, and drop doubles.

    Of several mounts on one target the last stays.  A bind of a path on itself goes when another
    such bind above it brings it along.
    """
    last = {_parts(mount.target): mount for mount in mounts}
    arranged: List[MountOperation] = []
    for _, mount in sorted(last.items()):
        if not any(_brings(earlier, mount) for earlier in arranged):
            arranged.append(mount)
    return arranged


def _brings(above: MountOperation, mount: MountOperation) -> bool:
    """True when `above` shows at the target of `mount` the same as `mount` would."""
    if not (isinstance(above, Bind) and isinstance(mount, Bind) and above.recursive):
        return False
    same_path = mount.source == mount.target and above.source == above.target
    parts = _parts(above.target)
    return (
        same_path and above.options == mount.options and _parts(mount.target)[: len(parts)] == parts
    )


def _make(mount: Mount, variables: Mapping[str, str]) -> MountOperation:
    source = _expand(mount.source, variables, mount.origin)
    target = _expand(mount.target, variables, mount.origin)
    if mount.type == "tmpfs":
        return Tmpfs(target, mount.options, mount.origin)
    return Bind(
        source,
        target,
        options=tuple(dict.fromkeys((*_attributes(mount.options), *NEVER))),
        recursive="bind" not in mount.options,
        nofail="nofail" in mount.options,
        origin=mount.origin,
    )


def _attributes(options: Tuple[str, ...]) -> List[str]:
    return [option for option in options if option in ATTRIBUTES]


def _expand(text: str, variables: Mapping[str, str], origin: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in variables:
            known = ", ".join(f"${known}" for known in variables)
            raise SiteError(f"{origin}: cannot expand ${name} in {text}", f"known are {known}")
        return variables[name]

    return re.sub(r"\$([A-Za-z_]\w*)", value, text)


def _parts(path: str) -> Tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))
