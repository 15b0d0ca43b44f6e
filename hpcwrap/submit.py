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
from hpcwrap.request import MAX_TEXT, NONE, Request, is_image, is_plain
from hpcwrap.schedulers import default_container


class Choice(NamedTuple):
    """The environment that a job gets, the settings it was found with, and who asked for it.

    pin: the digest that its image must have, or empty.  named_by_user: the environment is nothing
    but an image that the user named.
    """

    settings: Settings
    environment: Environment
    origin: str
    pin: str = ""
    named_by_user: bool = False


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
    if is_image(wanted.container):
        return Choice(settings, own_image(wanted, settings), wanted.origin, named_by_user=True)
    settings, environment = snapshot.load_environment(wanted.container, config_file)
    if not allowed(environment, job.user.name, group_names(job.user)):
        raise refusal(environment, job.user.name)
    return Choice(settings, environment, wanted.origin, wanted.pin)


def own_image(wanted: Request, settings: Settings) -> Environment:
    """The environment of a user's own image: the site's mounts, and nothing else.

    Raises UserError where the site does not allow the image.
    """
    text = wanted.container or ""
    said = f"{wanted.origin}={text[:MAX_TEXT]}" if wanted.origin.startswith("--") else text
    if not settings.user_images:
        raise UserError(
            f"cannot use {said}: it is a path or an image, and this site allows "
            "its environments only",
            "see `hpcwrap env list`",
        )
    if not is_plain(text):
        raise UserError(
            f"cannot use {said}: an image's name or path has letters, digits "
            f"and ._-/:@+=,~ only, {MAX_TEXT} at most"
        )
    from hpcwrap.image.allow import check_source
    from hpcwrap.image.source import parse_source

    check_source(parse_source(text), settings.allow_images)
    return Environment(text, text, "", (), (), None, (), (), wanted.origin)


def apply_default(job: Job, request: Request, settings: Settings) -> Request:
    """What the job said, or else the default of where it runs."""
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
