"""What HTCondor's configuration says of containers: made from hpcwrap's, as text.

The schedd's part refuses at submission what can be told there; the helper asks again on the node.
"""

from __future__ import annotations

from typing import Iterator, List, Mapping, NamedTuple, Optional, Sequence

from hpcwrap.config import Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.request import NONE
from hpcwrap.schedulers.filtertable import make_hint
from hpcwrap.schedulers.htcondor import DEFAULT, ERROR_ATTRIBUTE, FAILED, POOL
from hpcwrap.templates import make_engine

NODE_TEMPLATE = "htcondor_node.config.j2"
SUBMIT_TEMPLATE = "htcondor_submit.config.j2"

NAMED = "(Container ?: ContainerImage ?: DockerImage ?: SingularityImage)"
"""What a job named, by whichever command of the submit description."""

FILES = r'"[.](sif|sqsh|squashfs|tar|tar[.]gz)$"'
IS_FILE = f"({NAMED} isnt undefined && regexp({FILES}, {NAMED}))"
IS_IMAGE = 'regexp("[/:]", Container)'


class Rule(NamedTuple):
    """One SUBMIT_REQUIREMENT: a job that does not meet the condition is refused."""

    name: str
    condition: str
    reason: str


class Programs(NamedTuple):
    """What HTCondor runs on a node: for a job, at its end, and for a session in it."""

    job: str
    release: str
    session: str


def render_node(settings: Settings, programs: Programs) -> str:
    """Write the nodes' part; with a default every job comes to hpcwrap."""
    target = NAMED.replace("(", "(TARGET.").replace("?: ", "?: TARGET.")
    has_default = default_of(settings) is not None
    named = f'{target} isnt undefined && {target} isnt "{NONE}"'
    text = make_engine().get_template(NODE_TEMPLATE)
    return text.render(
        programs=programs,
        sshd_arguments=sshd_arguments(programs),
        is_container_job="True" if has_default else named,
        image=f'{target} ?: "{DEFAULT}"',
    )


def sshd_arguments(programs: Programs) -> str:
    """HTCondor's own, and what sshd runs whatever it is asked for; %f is sshd's configuration."""
    return f"\"-i -e -f %f -o 'ForceCommand={programs.session} %f'\""


def default_of(settings: Settings) -> Optional[str]:
    """The environment of jobs that name none; None without one."""
    name = settings.defaults["htcondor"]["pool"].get(POOL)
    return None if name == NONE else name


def render_submit(config: Config, members: Mapping[str, Optional[Sequence[str]]]) -> str:
    """Write the schedd's part.

    `members` are the names of the users of each group, None for a group that cannot be listed.
    """
    text = make_engine().get_template(SUBMIT_TEMPLATE)
    return text.render(
        origin=config.path,
        named=NAMED,
        files=FILES,
        attribute=ERROR_ATTRIBUTE,
        failed=f"ExitCode =?= {FAILED} && {ERROR_ATTRIBUTE} isnt undefined",
        default=default_of(config.settings),
        rules=list(make_rules(config, members)),
    )


def make_rules(config: Config, members: Mapping[str, Optional[Sequence[str]]]) -> Iterator[Rule]:
    """What is refused at submission, in the order in which it is looked at."""
    none = f'Container is undefined || Container is "{NONE}"'
    names = sorted({*config.environments, *config.broken})
    hint = make_hint(sorted(config.environments))
    if not config.settings.user_images:
        reason = (
            f'strcat("hpcwrap: cannot use ", {NAMED}, ": it is a path or an image, and this site '
            'allows its environments only (see `hpcwrap env list`)")'
        )
        yield Rule("HpcwrapImages", f"! {IS_FILE} && ({none} || ! {IS_IMAGE})", reason)
    yield Rule(
        "HpcwrapKnown",
        f"{none} || {IS_IMAGE} || stringListMember(Container, {quote(','.join(names))})",
        f'strcat("hpcwrap: cannot find the environment ", Container, {quote(f" ({hint})")})',
    )
    if not config.settings.allow_none:
        reason = (
            "hpcwrap: cannot run without a container (Container=none): this site does not allow it"
        )
        yield Rule("HpcwrapNone", f'Container isnt "{NONE}"', quote(reason))
    for number, environment in enumerate(restricted(config)):
        users = users_of(environment, members)
        if users is not None:
            yield make_user_rule(number, environment, users)


def restricted(config: Config) -> List[Environment]:
    """Environments that not everyone may use, by name."""
    found = [each for each in config.environments.values() if each.users or each.groups]
    return sorted(found, key=lambda each: each.name)


def users_of(
    environment: Environment, members: Mapping[str, Optional[Sequence[str]]]
) -> Optional[List[str]]:
    """Everyone who may use it; None where a group cannot be listed: the node can tell."""
    users = set(environment.users)
    for group in environment.groups:
        names = members.get(group)
        if names is None:
            return None
        users.update(names)
    return sorted(users)


def make_user_rule(number: int, environment: Environment, users: Sequence[str]) -> Rule:
    """Refuse an environment to those who may not use it."""
    groups = " or ".join(environment.groups)
    reason = f"members of the group {groups}" if groups else "named users"
    told = f" may not use the environment {environment.name}: it is for {reason}"
    return Rule(
        f"HpcwrapUsers{number}",
        f"Container isnt {quote(environment.name)}"
        f" || stringListMember(Owner, {quote(','.join(users))})",
        f'strcat("hpcwrap: ", Owner, {quote(told)})',
    )


def quote(text: str) -> str:
    """A string of ClassAds, in a configuration file, where $( would begin a macro."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "")
    return f'"{escaped}"'
