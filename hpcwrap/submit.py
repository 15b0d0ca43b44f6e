"""Submit: from what was said to an environment that this user may use.

The scheduler's filter asks the same questions at submission from a generated table; the prolog
asks them here again, on the node, because a filter can be gone round.
"""

from __future__ import annotations

import grp
from typing import List, NamedTuple, Optional

from hpcwrap import paths, snapshot
from hpcwrap.config import Settings
from hpcwrap.environment import Environment, allowed, refusal
from hpcwrap.errors import UserError
from hpcwrap.job import Job, User
from hpcwrap.request import NONE, Request
from hpcwrap.schedulers import default_container


class Choice(NamedTuple):
    """The environment that a job gets, the settings it was found with, and who asked for it."""

    settings: Settings
    environment: Environment
    origin: str


def choose(job: Job, request: Request, config_file: str = paths.CONFIG_FILE) -> Optional[Choice]:
    """Find the environment of a job; None when it has none and runs on the host.

    Raises UserError for a name that is unknown or not for this user, SiteError for settings that
    cannot be read: then nobody knows whether a default applies, and nothing may run.
    """
    settings = snapshot.load_settings(config_file)
    wanted = apply_default(job, request, settings)
    if wanted.container is None:
        return None
    if request.container == NONE:
        refuse_none(request, settings)
    if wanted.container == NONE:
        return None
    settings, environment = snapshot.load_environment(wanted.container, config_file)
    if not allowed(environment, job.user.name, group_names(job.user)):
        raise refusal(environment, job.user.name)
    return Choice(settings, environment, wanted.origin)


def apply_default(job: Job, request: Request, settings: Settings) -> Request:
    """What the job said, or else the default of its partition or account."""
    if request.container is not None:
        return request
    return default_container(settings, job) or request


def refuse_none(request: Request, settings: Settings) -> None:
    """Raise UserError when the site does not let jobs opt out of a default."""
    if not settings.allow_none:
        raise UserError(
            f"cannot run without a container ({request.origin}=none)",
            "this site does not allow it; leave the option out",
        )


def group_names(user: User) -> List[str]:
    """Names of the user's groups; a group without a name cannot be named in an environment."""
    names = []
    for gid in user.groups:
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue
    return names
