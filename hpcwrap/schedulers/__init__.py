"""Schedulers: each in a module of its own that speaks one scheduler's language.

The modules are adapters: functions of the same names, listed in `Adapter`.  They turn what the
scheduler says into our words and decide nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, List, Mapping, NamedTuple, Optional, Protocol, Tuple, cast

from hpcwrap.config import DEFAULT_KEYS, Settings
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError
from hpcwrap.job import Job, User
from hpcwrap.request import NONE, Request

if TYPE_CHECKING:
    from hpcwrap.gpus import Gpus

NAMES = ("slurm", "gridengine", "htcondor", "pbs", "lsf", "local")


class Commands(NamedTuple):
    """Commands of the host that are to work inside: their directory there, and their names.

    `scripts` are programs of the host's that the scheduler itself calls inside, by these paths.
    """

    directory: str
    names: Tuple[str, ...]
    scripts: Tuple[str, ...] = ()


class Launcher(NamedTuple):
    """How a command is started on another node of the job, from inside the container.

    `words` are the launcher's command line: ``%h`` in one of them is the node, and ``%c`` alone a
    command for a shell.  `nodes` are the job's, none where the scheduler did not say; `unset` names
    variables that would mislead the launcher.  `hydra` is false where MPICH's own launcher speaks
    to the scheduler.  `defaults` are variables of the job's that tell its MPI which nodes it has.
    `program` is what jobs find beside hpcwrap-launch, a file of enter/.
    """

    words: Tuple[str, ...]
    nodes: Tuple[str, ...] = ()
    unset: Tuple[str, ...] = ()
    hydra: bool = True
    defaults: Tuple[Tuple[str, str], ...] = ()
    program: str = "hpcwrap-sshd"


class Adapter(Protocol):
    """What the stages need of a scheduler."""

    user_namespace: bool
    """Whether ranks join as the user (a user namespace of their own) or as root just before."""

    enforces_limits: bool
    """Whether it holds jobs to their limits itself: then no cgroup of ours is made in its own."""

    serves_pmi: bool
    """Whether what starts its ranks is their server for PMIx and PMI2."""

    def read_prolog(self, environ: Mapping[str, str]) -> Tuple[Job, Request]:
        """Read the job and its request from the prolog's environment.

        Raises SiteError when the scheduler did not say enough.
        """

    def read_gpus(self, environ: Mapping[str, str]) -> Optional[Gpus]:
        """Read which GPUs the job has on this node, from the prolog's environment; None: none."""

    def read_job_id(self, environ: Mapping[str, str]) -> str:
        """Read the job's id from the epilog's environment.  Raises SiteError."""

    def own_mounts(self, settings: Settings) -> Tuple[Mount, ...]:
        """Give the mounts that the scheduler's own commands and libraries need inside."""

    def commands(self, settings: Settings) -> Optional[Commands]:
        """Give the scheduler's commands that jobs call; None when the host has none."""

    def launcher(self, settings: Settings, environ: Mapping[str, str]) -> Optional[Launcher]:
        """Say how a job reaches its other nodes; None where it cannot.

        `environ` is the prolog's environment.
        """


class AccountingAdapter(Adapter, Protocol):
    """What the prolog needs besides, of a scheduler whose accounting has room for an image."""

    def account(self, environ: Mapping[str, str], label: str) -> Optional[List[str]]:
        """Give the arguments of hooks/account_NAME.py, which is to note NAME@DIGEST.

        None where nothing is to be noted.  `environ` is the prolog's environment.
        """


class NotingAdapter(Adapter, Protocol):
    """What the prolog needs besides, of a scheduler whose steps may have their own containers."""

    def note(self, environ: Mapping[str, str]) -> None:
        """Note what only the job's prolog is told; `environ` is its environment."""


class CallerAdapter(Adapter, Protocol):
    """What the helper needs besides, of a scheduler without a root hook (docs/decisions/0103)."""

    CALLER_VARIABLES: Tuple[str, ...]
    """Variables of the caller's that `read_gpus` and `launcher` look for."""

    def read_caller(self, variables: Mapping[str, str], user: User) -> Tuple[Job, Request]:
        """Read the job and its request from what a job's process says; all of it is the user's.

        Raises UserError.
        """


def load(name: str) -> Adapter:
    """Import the adapter of a scheduler.  Raises SiteError for a name that there is not."""
    if name not in NAMES:
        raise SiteError(f"cannot find the scheduler {name}", f"known are {', '.join(NAMES)}")
    return cast(Adapter, importlib.import_module(f"hpcwrap.schedulers.{name}"))


def default_container(settings: Settings, job: Job) -> Optional[Request]:
    """Find the default of the places where the job runs, in the order of `DEFAULT_KEYS`.

    None without one, and where one place's default is not to have the next one's: `none`.
    """
    defaults = settings.defaults.get(job.scheduler, {})
    places = dict(job.places)
    for kind in DEFAULT_KEYS.get(job.scheduler, ()):
        name = defaults.get(kind, {}).get(places.get(kind, ""))
        if name is not None:
            origin = f"the default of the {kind} {places[kind]}"
            return None if name == NONE else Request(name, origin)
    return None
