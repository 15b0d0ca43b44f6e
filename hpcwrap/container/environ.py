"""The entry file: what native/enter.c needs to join a container, compiled into plain strings.

NUL-terminated strings, one after the other: the format's name, then instructions, each a verb and
its arguments, `end` last.  docs/decisions/0030 has the rule for variables that it carries out.
"""

from __future__ import annotations

from typing import Iterable, List, Sequence

from hpcwrap.container.cgroupview import CgroupView
from hpcwrap.container.operations import Commands
from hpcwrap.container.plan import Plan
from hpcwrap.environment import UNLIMITED, Environment, Rlimit, Variable
from hpcwrap.errors import UserError
from hpcwrap.paths import JobPaths

FORMAT = "hpcwrap-entry-1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an image that sets no PATH gets, as Docker does it."""

ARGUMENTS = {
    "default": 2,
    "path": 1,
    "set": 2,
    "unset": 1,
    "prepend": 2,
    "append": 2,
    "renumber": 2,
}
"""How many arguments each instruction for variables has."""


def make_entry(
    label: str,
    plan: Plan,
    place: JobPaths,
    image_variables: Iterable[str],
    environment: Environment,
) -> bytes:
    """Compile the entry of a container; `label` is NAME@DIGEST, `image_variables` are K=V."""
    words = [FORMAT, "container", label]
    if plan.user_namespace:
        words += ["user-namespace", place.user_namespace]
    words += ["mount-namespace", place.mount_namespace]
    words += namespace_instructions(plan)
    if environment.workdir:
        words += ["workdir", environment.workdir]
    words += rlimit_instructions(plan.rlimits)
    variables = list(image_variables)
    words += image_instructions(variables)
    words += command_instructions(plan, image_path(variables))
    words += variable_instructions(plan.variables)
    words += variable_instructions(environment.variables)
    words += [word for note in plan.notes for word in ("note", *note)]
    return encode([*words, "end"])


def namespace_instructions(plan: Plan) -> List[str]:
    """Whether /proc/self/cgroup inside is to begin where /sys/fs/cgroup does."""
    views = [each for each in plan.operations if isinstance(each, CgroupView)]
    return ["cgroup-namespace"] if any(view.unified and view.own for view in views) else []


def rlimit_instructions(rlimits: Iterable[Rlimit]) -> List[str]:
    """Limits with both values, which are setrlimit(2)'s own, or the word unlimited."""
    words: List[str] = []
    for limit in rlimits:
        values = (limit.soft, limit.hard)
        words += ["rlimit", limit.name]
        words += ["unlimited" if value == UNLIMITED else str(value) for value in values]
    return words


def image_instructions(variables: Iterable[str]) -> List[str]:
    """The image's variables are defaults; its PATH has a rule of its own."""
    words: List[str] = []
    variables = list(variables)
    for variable in variables:
        name, _, value = variable.partition("=")
        if name and name != "PATH":
            words += ["default", name, value]
    return [*words, "path", image_path(variables)]


def image_path(variables: Iterable[str]) -> str:
    """The image's PATH, or the usual one where it has none."""
    found = [variable[len("PATH=") :] for variable in variables if variable.startswith("PATH=")]
    return found[-1] if found and found[-1] else PATH


def command_instructions(plan: Plan, path: str) -> List[str]:
    """The host's commands are found even where their directory is not in the image's PATH."""
    found = [each.directory for each in plan.operations if isinstance(each, Commands)]
    missing = [directory for directory in found if directory not in path.split(":")]
    return [word for directory in missing for word in ("append", "PATH", directory)]


def variable_instructions(variables: Iterable[Variable]) -> List[str]:
    """The machine's and the environment file's variables, in their order: the site's come last."""
    words: List[str] = []
    for variable in variables:
        words += [variable.action, variable.name]
        words += [] if variable.action == "unset" else [variable.value]
    return words


def describe_variables(
    image_variables: Iterable[str], plan: Plan, environment: Environment
) -> List[str]:
    """What happens to a job's variables, in order, one line each, for `hpcwrap plan`."""
    words = image_instructions(image_variables)
    words += variable_instructions((*plan.variables, *environment.variables))
    lines = []
    while words:
        count = ARGUMENTS[words[0]] + 1
        lines.append(" ".join(words[:count]))
        words = words[count:]
    return lines


def encode(words: Sequence[str]) -> bytes:
    """Join the strings.  Raises UserError for a NUL, which only a broken image can bring."""
    if any("\0" in word for word in words):
        raise UserError("cannot use the image: one of its variables holds a NUL character")
    try:
        return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
    except UnicodeEncodeError:
        raise UserError("cannot use the image: one of its variables is no text") from None
