"""What pbs_server is told of hpcwrap: a resource, four hooks, and the table of environments.

Pure text here; hpcwrap/verbs/setup_pbs.py gives it to qmgr(8B).
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from hpcwrap.config import Config
from hpcwrap.environment import Environment
from hpcwrap.schedulers.filtertable import Digests, make_hint, pins_until
from hpcwrap.schedulers.pbs import RESOURCE

VERSION = 1
RESOURCE_FLAG = "m"
"""Without it pbs_mom, and so every hook on a node, does not hear of the resource."""

SPARE_S = 120
"""What may come beside a pull before PBS ends who waits for it."""

SWEEP_S = 600
"""How often a node looks for what jobs left."""


class Hook(NamedTuple):
    """One hook: `stage` is the folder of its source, `attributes` are qmgr's."""

    name: str
    stage: str
    attributes: Mapping[str, str]


def hooks(pull_timeout: int) -> Sequence[Hook]:
    """All hooks; `pull_timeout` in seconds.

    By `order`, pbs_cgroups (100) comes before those that look at its cgroups or add to what it
    sets.  A hook that cannot run at all takes its node out of service (fail_action): else PBS
    would send one job after the other there, each 21 times.
    """
    return (
        make_hook("submit", "queuejob,modifyjob", order=900, alarm=30),
        make_hook("prolog", "execjob_begin", order=200, alarm=60, fail_action="offline_vnodes"),
        make_hook("enter", "execjob_launch", order=900, alarm=pull_timeout + SPARE_S),
        make_hook(
            "epilog",
            "execjob_end,execjob_abort,exechost_startup,exechost_periodic",
            order=50,
            alarm=60,
            freq=str(SWEEP_S),
        ),
    )


def make_hook(stage: str, event: str, *, order: int, alarm: int, **more: str) -> Hook:
    """Describe a hook that runs as root."""
    attributes = {
        "event": event,
        "order": str(order),
        "alarm": str(alarm),
        "user": "pbsadmin",
        "enabled": "true",
        "fail_action": "none",
        **more,
    }
    return Hook(f"hpcwrap_{stage}", stage, attributes)


def parse_attributes(text: str) -> Dict[str, str]:
    """Read what `qmgr -c "list hook NAME"` prints: NAME = VALUE, lists over several lines."""
    joined = re.sub(r",\n\t", ",", text)
    found = dict(re.findall(r"^ +(\w+) = (.*)$", joined, re.MULTILINE))
    return {key: value.strip() for key, value in found.items()}


def differing(hook: Hook, found: Mapping[str, str]) -> List[str]:
    """Names of attributes that are not as they are to be; PBS sorts lists its own way."""
    return [
        name
        for name, value in hook.attributes.items()
        if sorted(value.split(",")) != sorted(found.get(name, "").split(","))
    ]


# ---- configurations of the hooks ----


def node_config(prefix: str, enter_program: str, tell_program: str) -> str:
    """What the hooks on nodes have to know: where this installation is."""
    programs = {"enter": enter_program, "tell": tell_program}
    return _json({"version": VERSION, "prefix": prefix, **programs})


def table(config: Config, digests: Digests, now: float) -> str:
    """What submit/pbs.py knows of environments; `now` is an epoch in s."""
    settings = config.settings
    environments: Dict[str, Any] = {
        name: describe(environment, digests.get(name, ()))
        for name, environment in sorted(config.environments.items())
    }
    environments.update((name, {"broken": True}) for name in sorted(config.broken))
    return _json(
        {
            "version": VERSION,
            "origin": config.path,
            "allow_none": settings.allow_none,
            "user_images": settings.user_images,
            "pins_until": pins_until(settings.pull, now),
            "hint": make_hint(sorted(config.environments)),
            "environments": environments,
        }
    )


def describe(environment: Environment, digests: Sequence[str]) -> Dict[str, Any]:
    """One environment: who may use it, and its images, the one that it has now first."""
    return {
        "digests": list(digests),
        "users": list(environment.users),
        "groups": list(environment.groups),
    }


def without(text: str, *keys: str) -> Dict[str, Any]:
    """A table without some of its values, to be compared; empty for what is no table."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return {key: value for key, value in document.items() if key not in keys}


def resource_lines() -> Sequence[str]:
    """For qmgr: the resource that `-l` names."""
    return (f"create resource {RESOURCE} type=string,flag={RESOURCE_FLAG}",)


def hook_lines(hook: Hook, found: Mapping[str, str]) -> List[str]:
    """For qmgr: a hook as it is to be, where `found` is what it is; nothing where it is so."""
    lines = [] if found else [f"create hook {hook.name}"]
    return lines + [
        f"set hook {hook.name} {name} = '{hook.attributes[name]}'"
        for name in differing(hook, found)
    ]


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
