"""The site's configuration: settings in one table, environments, and where each value came from.

Layers, later ones win: the built-in defaults, ``hpcwrap.yaml``, then ``conf.d/*.yaml`` beside it
in sorted order.  ``environments.d/NAME.yaml`` beside it are the environments.

The prolog imports this module for `Settings` alone: what reads files is imported by what needs it.
"""

from __future__ import annotations

import os
from typing import Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import paths
from hpcwrap.environment import FABRICS, GPUS, MPIS, Environment, Mount, Rlimit
from hpcwrap.errors import SiteError, UserError
from hpcwrap.hints import closest
from hpcwrap.request import NONE

Watch = Callable[[str], None]
"""Is told each path before it is read: `snapshot` stamps what it will depend on."""

DEFAULT = "default"
"""The origin of a value that no file gives."""

DEFAULT_KEYS = {
    "slurm": ("partition", "account"),
    "gridengine": ("queue", "project"),
    "htcondor": ("pool",),
    "pbs": ("queue",),
    "lsf": ("queue", "application"),
}
"""What `defaults` may tell apart: scheduler → kinds of places that have default environments; the
default of an earlier kind goes before that of a later one."""

Defaults = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Scheduler → kind of place (`DEFAULT_KEYS`) → its name → an environment's name, or ``none``."""

NO_DEFAULTS: Defaults = {
    scheduler: {kind: {} for kind in kinds} for scheduler, kinds in DEFAULT_KEYS.items()
}


class Settings(NamedTuple):
    """Every setting, flat, with its default; `ROWS` says what each is."""

    store: str = "/var/lib/hpcwrap"
    image_user: str = "nobody"
    squashfs_compression: str = "zstd"
    squashfs_level: int = 1
    store_size: str = "0"
    cache: str = ""
    cache_size: str = "50g"
    layer_cache: str = "10g"
    gc_days: int = 30
    lease_days: int = 30
    pull: str = "missing"
    pull_timeout: int = 900
    pull_jitter: int = 10
    registry_timeout: int = 30
    registry_retries: int = 4
    registries_conf: str = ""
    policy: str = ""
    auth_file: str = ""
    user_credentials: bool = True
    user_images: bool = False
    allow_images: Tuple[str, ...] = ()
    shared_images: Tuple[str, ...] = ()
    gpus: str = "scheduler"
    fabric: str = "image"
    mpi: str = "image"
    mpi_libraries: Tuple[str, ...] = ()
    rlimits: Tuple[Rlimit, ...] = ()
    shm_size: str = "0"
    cdi_directories: Tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    mounts: Tuple[Mount, ...] = ()
    mount_home: bool = True
    mount_workdir: bool = True
    root_size: str = "16m"
    log: str = "/var/log/hpcwrap/jobs.jsonl"
    ended_jobs: int = 500
    allow_none: bool = True
    slurm_spool_directory: str = "/var/spool/slurmd"
    slurm_configuration_directory: str = "/etc/slurm"
    slurm_commands: str = "/usr/bin"
    lsf_commands: str = ""
    defaults: Defaults = NO_DEFAULTS


class Row(NamedTuple):
    """One setting: how its value is read (`settingsfile.PARSERS`) and what it does, in one line.

    `choices` are the words of a choice; `least` and `most` bound a number.
    """

    name: str
    kind: str
    help: str
    choices: Tuple[str, ...] = ()
    least: int = 0
    most: int = 0

    @property
    def default(self) -> object:
        """The built-in value, as Settings holds it."""
        return Settings._field_defaults[self.name]


ROWS = (
    Row("store", "path", "Directory of the images; all nodes may share it"),
    Row("image_user", "account", "Account that downloads and converts images; never root"),
    Row(
        "squashfs_compression",
        "choice",
        "How mksquashfs compresses an image: zstd, gzip, lz4 or xz",
        choices=("zstd", "gzip", "lz4", "xz"),
    ),
    Row(
        "squashfs_level",
        "number",
        "Level of zstd (1 to 22) or gzip (1 to 9); the others have none",
        least=1,
        most=22,
    ),
    Row(
        "store_size",
        "bytes",
        "How large the store may grow before old images leave it; 0: no bound",
    ),
    Row(
        "cache", "file", "Directory on a node's own disk for copies of the store's images, or none"
    ),
    Row("cache_size", "bytes", "How large a node's cache may grow before old images leave it"),
    Row("layer_cache", "bytes", "How much of downloaded layers the store keeps; 0: nothing"),
    Row(
        "gc_days",
        "number",
        "Days since its last use after which `hpcwrap image gc` removes an image",
        least=0,
        most=36500,
    ),
    Row(
        "lease_days",
        "number",
        "Days after which a lease of another node no longer keeps an image",
        least=1,
        most=36500,
    ),
    Row(
        "pull",
        "choice",
        "When the prolog pulls: never, when the store has no image, or when that is older, too",
        choices=("never", "missing", "always", "hourly", "daily", "weekly"),
    ),
    Row(
        "pull_timeout",
        "number",
        "Seconds after which the prolog gives a pull up, at most a day",
        least=1,
        most=86400,
    ),
    Row(
        "pull_jitter",
        "number",
        "Seconds over which the nodes of a job spread their pulls, if each has its own store",
        least=0,
        most=600,
    ),
    Row(
        "registry_timeout",
        "number",
        "Seconds without a byte after which a registry is asked again",
        least=1,
        most=3600,
    ),
    Row(
        "registry_retries",
        "number",
        "How often a registry is asked again that stalls, fails or is busy",
        least=0,
        most=100,
    ),
    Row("registries_conf", "file", "registries.conf for pulls; empty: the host's"),
    Row("policy", "file", "policy.json for pulls; empty: the host's"),
    Row("auth_file", "file", "The site's passwords for registries (containers-auth.json), or none"),
    Row(
        "user_credentials",
        "switch",
        "Whether a job may pull with its user's passwords what the site may not",
    ),
    Row("user_images", "switch", "Whether --container may name an image instead of an environment"),
    Row("allow_images", "patterns", "Images that may be pulled, as patterns; none: all"),
    Row(
        "shared_images",
        "patterns",
        "Images that are everyone's, even if pulled with a user's password",
    ),
    Row(
        "gpus",
        "choice",
        "GPUs in a container: those that the scheduler gave the job, all or none",
        choices=GPUS,
    ),
    Row(
        "fabric",
        "choice",
        "Whose libraries drive InfiniBand and other fabrics: the image's or the host's; or none",
        choices=FABRICS,
    ),
    Row(
        "mpi",
        "choice",
        "Whose MPI library programs get: the image's or, of the same ABI, the host's",
        choices=MPIS,
    ),
    Row(
        "mpi_libraries",
        "directories",
        "The host's MPI libraries for `mpi: host`, as paths of libmpi.so.*; none: ldconfig's",
    ),
    Row("rlimits", "rlimits", "Limits of every process, such as memlock=unlimited, nofile=4k:64k"),
    Row("shm_size", "bytes", "Size of a /dev/shm of the job's own; 0: the host's /dev/shm"),
    Row("cdi_directories", "directories", "Where specs of devices are (CDI); the last one wins"),
    Row("mounts", "mounts", "Mounts of every container: a list of fstab lines"),
    Row("mount_home", "switch", "Whether the user's home directory is in the container"),
    Row("mount_workdir", "switch", "Whether the job's work directory is in the container"),
    Row("root_size", "size", "Size of the tmpfs that holds a container's mount points"),
    Row("log", "path", "File that gets a line of JSON for each container of a job"),
    Row(
        "ended_jobs",
        "number",
        "Number of ended jobs that each node remembers for `hpcwrap show`",
        most=100_000,
    ),
    Row("allow_none", "switch", "Whether --container=none may opt out of a default"),
    Row("slurm_spool_directory", "path", "SlurmdSpoolDir, as slurm.conf has it"),
    Row("slurm_configuration_directory", "path", "Directory of slurm.conf and plugstack.conf"),
    Row("slurm_commands", "path", "Directory of Slurm's commands, which work inside, too"),
    Row("lsf_commands", "file", "LSF_BINDIR: LSF's commands, which work inside, too; or none"),
    Row(
        "defaults",
        "defaults",
        "Environments of jobs that name none, by partition, queue, account …",
    ),
)

ROWS_BY_NAME = {row.name: row for row in ROWS}


def unwatched(_path: str) -> None:
    """The watch of a reader who depends on nothing later."""


class Config(NamedTuple):
    """All of the site's configuration.

    `origins` holds ``file:line`` or ``default`` for each setting and, as
    ``defaults.slurm.partition.NAME``, for each default.  `broken` holds the error of each
    environment that cannot be used; `partial` that of the environments without an image that
    others have as their base.  `environment_origins` says where each key of an environment came
    from.
    """

    path: str
    settings: Settings
    origins: Dict[str, str]
    environments: Dict[str, Environment]
    environment_origins: Dict[str, Dict[str, str]]
    broken: Dict[str, SiteError]
    partial: Dict[str, SiteError]

    def environment(self, name: str) -> Environment:
        """The environment of that name.

        Raises SiteError when its file is at fault, UserError when there is none.
        """
        if name in self.environments:
            return self.environments[name]
        error = self.broken.get(name) or self.partial.get(name)
        raise error or unknown_environment(name, [*self.environments, *self.broken])

    def problems(self) -> Dict[str, SiteError]:
        """The environments that a job could name and not get, with the reason."""
        return dict(sorted(self.broken.items()))


def settings_file(path: Optional[str] = None) -> str:
    """The settings file to read: the one named, or $HPCWRAP_CONFIG's, or the installed one.

    The schedulers' hooks name theirs: a job's variables must not choose what root reads.
    """
    return path or os.environ.get("HPCWRAP_CONFIG") or paths.CONFIG_FILE


def load_config(path: Optional[str] = None) -> Config:
    """Read all settings and environments; `path` is as for `settings_file`.

    Raises SiteError for the settings; a broken environment is kept and raised when it is used.
    """
    from hpcwrap import environmentfile, settingsfile

    file = settings_file(path)
    settings, origins = settingsfile.read_settings(file)
    found = environmentfile.read_environments(environments_directory(file))
    known = {NONE, *found.resolved, *found.broken, *found.partial}
    missing = {
        name: _missing_default(name, place, origins)
        for place, name in all_defaults(settings.defaults)
        if name not in known
    }
    return Config(
        path=file,
        settings=settings,
        origins=origins,
        environments={name: each.environment for name, each in found.resolved.items()},
        environment_origins={name: each.origins for name, each in found.resolved.items()},
        broken={**found.broken, **missing},
        partial=found.partial,
    )


def load_one(name: str, file: str, watch: Watch) -> Tuple[Settings, Environment]:
    """Read the settings and one environment, and nothing of the others.

    `watch` is called with each path before it is read.  Raises SiteError, or UserError when there
    is no such environment.
    """
    from hpcwrap import environmentfile, settingsfile

    settings, origins = settingsfile.read_settings(file, watch)
    directory = environments_directory(file)
    resolved = environmentfile.read_environment(name, directory, watch)
    if resolved:
        return settings, resolved.environment
    for place, default in all_defaults(settings.defaults):
        if default == name != NONE:
            raise _missing_default(name, place, origins)
    raise unknown_environment(name, environmentfile.environment_names(directory))


def environments_directory(file: str) -> str:
    """Where the environments of a settings file lie."""
    return os.path.join(os.path.dirname(file), paths.ENVIRONMENTS_NAME)


def all_defaults(defaults: Defaults) -> Iterator[Tuple[str, str]]:
    """Each default: its place (``defaults.slurm.partition.gpu``) and the name that it has there."""
    for scheduler, kinds in defaults.items():
        for kind, names in kinds.items():
            for name, environment in names.items():
                yield f"defaults.{scheduler}.{kind}.{name}", environment


def unknown_environment(name: str, known: Sequence[str]) -> UserError:
    """What a user is told who names an environment that there is not."""
    hint = closest(name, known, otherwise="see `hpcwrap env list`")
    return UserError(f"there is no environment {name!r}", hint)


def _missing_default(name: str, place: str, origins: Mapping[str, str]) -> SiteError:
    return SiteError(
        f"{origins[place]}: {place} names the environment {name}, which does not exist",
        f"add {paths.ENVIRONMENTS_NAME}/{name}.yaml or change the default",
    )
