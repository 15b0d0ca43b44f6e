"""queuejob, modifyjob: may this job have the container that it asks for?  (pbs_server's own Python)

pbs_server does nothing else while this runs: so there is no process and no network here, and no
file but one: the table that `hpcwrap setup pbs --table` gives the hook as its configuration.  The
prolog asks the same questions again, on the node.
"""

import difflib
import grp
import json
import os
import pwd
import re
import time
from typing import Any, Dict, List, Optional

import pbs

VARIABLE = "HPCWRAP_CONTAINER"
NONE = "none"
PIN = re.compile(r"([^@/:]+)@(sha256:[0-9a-f]{64})")
IMAGE = re.compile(r"[\w./-][\w./:@+=,~-]{0,511}", re.ASCII)


class RefusalError(Exception):
    """What the user is told, in one sentence."""


def main(event: Any) -> None:
    """Check what is asked for, and leave it where the nodes look."""
    text = asked(event)
    if text is not None:
        with open(pbs.hook_config_filename, encoding="utf-8") as file:
            known = json.load(file)
        event.job.Resource_List["container"] = check(known, text, owner(event))


def asked(event: Any) -> Optional[str]:
    """The option, else at submission the variable; None for neither: a default may come later."""
    variables = check_variables(event.job) if event.type == pbs.QUEUEJOB else {}
    resources = event.job.Resource_List
    option = resources["container"] if resources else None
    if option is not None:
        return str(option)
    return str(variables.get(VARIABLE) or "") or None


def check_variables(job: Any) -> Any:
    """The job's variables, of which PBS loses all, for good, when one is not UTF-8.

    That is told from a job that came without any by what qsub(1B) always sends.
    """
    if job.Variable_List is None and job.Keep_Files is not None:
        raise RefusalError(
            "cannot read the job's variables: one of them is not UTF-8 "
            "(see `env`; leave out -V, or unset that one)"
        )
    return job.Variable_List or {}


def owner(event: Any) -> str:
    """Whose job it is: a manager may change another's."""
    if event.type == pbs.QUEUEJOB:
        return str(event.requestor)
    return str(event.job_o.Job_Owner).partition("@")[0]


def check(known: Dict[str, Any], text: str, user: str) -> str:
    """What the job is to have: an environment's name with the digest that it has now."""
    found = PIN.fullmatch(text)
    name, pin = found.groups() if found else (text, None)
    if name == NONE:
        check_none(known)
    elif "/" in name or ":" in name:
        check_image(known, name)
    else:
        return check_name(known, name, pin, user)
    return text


def check_none(known: Dict[str, Any]) -> None:
    """The site may want every job in a container."""
    if not known["allow_none"]:
        raise RefusalError(
            "cannot run without a container: this site does not allow -l container=none"
        )


def check_image(known: Dict[str, Any], text: str) -> None:
    """Which images are allowed the prolog knows: it sees what kind of image a path is."""
    if not known["user_images"]:
        raise RefusalError(
            f"cannot use -l container={harmless(text)}: it is a path or an image, and this site "
            "allows its environments only (see `hpcwrap env list`)"
        )
    if not IMAGE.fullmatch(text):
        raise RefusalError(
            f"cannot use -l container={harmless(text)}: an image's name or path has letters, "
            "digits and ._-/:@+=,~ only, 512 at most"
        )


def check_name(known: Dict[str, Any], name: str, pin: Optional[str], user: str) -> str:
    """The environment must be there, whole, and for this user."""
    environment = known["environments"].get(name)
    if environment is None:
        raise RefusalError(f"there is no environment '{harmless(name)}' ({hint(known, name)})")
    if environment.get("broken"):
        raise RefusalError(
            f"cannot use the environment {name}: it is broken, or a default that does not exist "
            "(tell the administrators; `hpcwrap config --check` says more)"
        )
    if not is_allowed(environment, user):
        raise RefusalError(forbidden(environment, name, user))
    digests = environment["digests"]
    if pin and digests and pin not in digests:
        raise RefusalError(
            f"cannot use {name}@{pin}: the environment never had this image here "
            "(see `hpcwrap images`)"
        )
    until = known["pins_until"]
    if not pin and digests and (until is None or time.time() < until):
        pin = digests[0]
    return f"{name}@{pin}" if pin else name


def hint(known: Dict[str, Any], name: str) -> str:
    """What may have been meant."""
    near = difflib.get_close_matches(name, known["environments"], 1)
    return f"did you mean {near[0]}?" if near else known["hint"]


def is_allowed(environment: Dict[str, Any], user: str) -> bool:
    """True, too, where this host cannot tell: the prolog can."""
    users, groups = environment["users"], environment["groups"]
    if (not users and not groups) or user in users:
        return True
    if not groups:
        return False
    try:
        gids = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except (KeyError, OSError):
        return True
    return any(is_member(group, gids) for group in groups)


def is_member(group: str, gids: List[int]) -> bool:
    """Whether one of the numbers is the group's."""
    try:
        return grp.getgrnam(group).gr_gid in gids
    except KeyError:
        return False


def forbidden(environment: Dict[str, Any], name: str, user: str) -> str:
    """As hpcwrap/environment.py says it."""
    groups = " or ".join(environment["groups"])
    reason = f"it is for members of the group {groups}" if groups else "it is for named users"
    return (
        f"{user} may not use the environment {name}: {reason} (ask the administrators for access)"
    )


def harmless(text: str) -> str:
    """Fit for a message."""
    return re.sub(r"[^\w./:@+=,~-]", "?", text[:64], flags=re.ASCII)


event = pbs.event()
try:
    main(event)
except RefusalError as refusal:
    event.reject(f"hpcwrap: {refusal}")
