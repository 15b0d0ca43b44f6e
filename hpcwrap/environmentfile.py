"""Environments from YAML: one file each, inheritance by `base`."""

from __future__ import annotations

import os
import re
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

from hpcwrap.config import Watch
from hpcwrap.environment import (
    DEVICE_PATTERN,
    FABRICS,
    GPUS,
    MPIS,
    Environment,
    Machine,
    Mount,
    Rlimit,
    Variable,
    is_name,
    parse_mount,
    parse_rlimit,
    replace_mounts,
    replace_rlimits,
    replace_variables,
    target_key,
)
from hpcwrap.errors import SiteError
from hpcwrap.human import parse_size
from hpcwrap.listing import list_files
from hpcwrap.request import NONE
from hpcwrap.yamlfile import Value, read_document

Parsed = TypeVar("Parsed")

SUFFIX = ".yaml"

MACHINE_KEYS = ("gpus", "fabric", "mpi", "devices", "rlimits", "shm_size")
KEYS = (
    *("image", "base", "description", "mounts", "variables", "workdir", "users", "groups"),
    *MACHINE_KEYS,
)
ACTIONS = ("unset", "set", "prepend", "append")
"""What `variables` may hold, in the order in which a file's changes are made."""

RESERVED_VARIABLES = "HPCWRAP_"


class Part(NamedTuple):
    """What one file says, before inheritance; None is what it does not say."""

    file: str
    base: Optional[Value]
    image: Optional[str]
    description: Optional[str]
    mounts: Tuple[Mount, ...]
    variables: Tuple[Variable, ...]
    workdir: Optional[str]
    users: Optional[Tuple[str, ...]]
    groups: Optional[Tuple[str, ...]]
    machine: Machine
    origins: Dict[str, str]


class Resolved(NamedTuple):
    """An environment after inheritance, and the ``file:line`` of each of its keys."""

    environment: Environment
    origins: Dict[str, str]


class Found(NamedTuple):
    """All environments of a directory: usable, broken, and without an image but a base."""

    resolved: Dict[str, Resolved]
    broken: Dict[str, SiteError]
    partial: Dict[str, SiteError]


class NoImageError(SiteError):
    """An environment that neither has an image nor inherits one."""


Find = Callable[[str], Optional[Part]]
"""Looks the part of a name up; None when there is no such file."""


def read_environments(directory: str) -> Found:
    """Read every environment of a directory.  Raises SiteError only for the directory."""
    parts, broken = _read_parts(directory)

    def find(name: str) -> Optional[Part]:
        if name in broken:
            raise broken[name]
        return parts.get(name)

    resolved: Dict[str, Resolved] = {}
    errors: Dict[str, SiteError] = {}
    for name, part in parts.items():
        try:
            resolved[name] = resolve(name, part, find)
        except SiteError as error:
            errors[name] = error
    bases = {part.base.string() for part in parts.values() if part.base}
    partial: Dict[str, SiteError] = {
        n: e for n, e in errors.items() if isinstance(e, NoImageError) and n in bases
    }
    unusable = {n: e for n, e in errors.items() if n not in partial}
    return Found(resolved, {**broken, **unusable}, partial)


def read_environment(name: str, directory: str, watch: Watch) -> Optional[Resolved]:
    """Read one environment and its bases, or None when there is no such file.

    `watch` is called with each path before it is read.  Raises SiteError.
    """

    def find(wanted: str) -> Optional[Part]:
        if not is_name(wanted):
            return None
        path = os.path.join(directory, wanted + SUFFIX)
        watch(path)
        return read_part(path) if os.path.exists(path) else None

    part = find(name)
    return resolve(name, part, find) if part else None


def environment_names(directory: str) -> List[str]:
    """The names of all environments of a directory, broken ones too."""
    names = [os.path.splitext(os.path.basename(path)) for path in yaml_files(directory)]
    return [name for name, suffix in names if suffix == SUFFIX and is_name(name)]


def yaml_files(directory: str) -> List[str]:
    """The YAML files of a directory, sorted.  Raises SiteError when it cannot be read."""
    return list_files(directory, (SUFFIX, ".yml"))


def resolve(name: str, part: Part, find: Find) -> Resolved:
    """Put an environment together from its file's part and those of its bases.

    Raises SiteError for a base that does not exist or leads back, and when there is no image.
    """
    chain = _bases(name, part, find)
    origins = {key: origin for each in chain for key, origin in each.origins.items()}
    mounts: Tuple[Mount, ...] = ()
    variables: Tuple[Variable, ...] = ()
    for each in chain:
        mounts = replace_mounts(mounts, each.mounts)
        variables = replace_variables(variables, each.variables)
    image = _last([each.image for each in chain])
    if image is None:
        raise NoImageError(
            f"{part.file}: the environment {name} has no image", "give it image: or a base with one"
        )
    environment = Environment(
        name=name,
        image=image,
        description=_last([each.description for each in chain]) or "",
        mounts=mounts,
        variables=variables,
        workdir=_last([each.workdir for each in chain]),
        users=_last([each.users for each in chain]) or (),
        groups=_last([each.groups for each in chain]) or (),
        origin=part.file,
        base=part.base.string() if part.base else None,
        machine=_merge_machines([each.machine for each in chain]),
    )
    return Resolved(environment, origins)


def read_part(path: str) -> Part:
    """Read one environment's file.  Raises SiteError with file and line."""
    document = read_document(path)
    entries = document.entries(KEYS)

    def optional(key: str, parse: Callable[[Value], Parsed]) -> Optional[Parsed]:
        return parse(entries[key]) if key in entries else None

    return Part(
        file=path,
        base=optional("base", _base),
        image=optional("image", _image),
        description=optional("description", _description),
        mounts=optional("mounts", read_mounts) or (),
        variables=optional("variables", _variables) or (),
        workdir=optional("workdir", _workdir),
        users=optional("users", _accounts),
        groups=optional("groups", _accounts),
        machine=Machine(
            gpus=optional("gpus", lambda value: read_choice(value, GPUS)),
            fabric=optional("fabric", lambda value: read_choice(value, FABRICS)),
            mpi=optional("mpi", lambda value: read_choice(value, MPIS)),
            devices=optional("devices", _devices),
            rlimits=optional("rlimits", read_rlimits) or (),
            shm_size=optional("shm_size", read_size),
        ),
        origins={key: value.origin for key, value in entries.items()},
    )


def read_mounts(value: Value) -> Tuple[Mount, ...]:
    """Read a list of fstab lines.  Raises SiteError, also for a target that comes twice."""
    mounts: Dict[str, Mount] = {}
    for item in value.items():
        mount = parse_mount(item.string(), item.origin)
        first = mounts.setdefault(target_key(mount), mount)
        if first is not mount:
            raise item.error(f"{mount.target} is mounted twice", f"first at {first.origin}")
    return tuple(mounts.values())


def read_choice(value: Value, choices: Sequence[str]) -> str:
    """Read one of some words.  Raises SiteError."""
    # Not a hint to quote what YAML reads as a switch or a number: quotes make off no choice.
    word = value.text if isinstance(value.data, (bool, int, float)) else value.string()
    if word not in choices:
        known = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise value.error(f"{value.name} must be {known}, not {word!r}")
    return word


def read_size(value: Value) -> str:
    """Read a number of bytes such as 50g.  Raises SiteError."""
    # 0 is a number to YAML and 50g is text: both are sizes.
    try:
        parse_size(value.text)
    except ValueError:
        reason = f"{value.name} must be a size such as 50g, not {value.text!r}"
        raise value.error(reason) from None
    return value.text


def read_rlimits(value: Value) -> Tuple[Rlimit, ...]:
    """Read a list of resource limits.  Raises SiteError, also for one that comes twice."""
    limits: Dict[str, Rlimit] = {}
    for item in value.items():
        try:
            limit = parse_rlimit(item.string())
        except ValueError as error:
            raise item.error(f"{value.name}: {error}") from None
        if limit.name in limits:
            raise item.error(f"{value.name} holds {limit.name} twice")
        limits[limit.name] = limit
    return tuple(limits.values())


def _devices(value: Value) -> Tuple[str, ...]:
    for item in value.items():
        if not re.fullmatch(DEVICE_PATTERN, item.string()):
            raise item.error(
                f"devices must hold CDI names such as vendor.example/gpu=0, not {item.string()!r}"
            )
    return tuple(item.string() for item in value.items())


def _merge_machines(machines: Sequence[Machine]) -> Machine:
    """What the nearest part says of each; rlimits add up."""
    nearest = {
        name: _last([getattr(each, name) for each in machines])
        for name in ("gpus", "fabric", "mpi", "devices", "shm_size")
    }
    rlimits: Tuple[Rlimit, ...] = ()
    for each in machines:
        rlimits = replace_rlimits(rlimits, each.rlimits)
    return Machine(rlimits=rlimits, **nearest)


def _read_parts(directory: str) -> Tuple[Dict[str, Part], Dict[str, SiteError]]:
    parts: Dict[str, Part] = {}
    broken: Dict[str, SiteError] = {}
    for path in yaml_files(directory):
        name = os.path.basename(path)
        if name.endswith(SUFFIX):
            name = name[: -len(SUFFIX)]
        try:
            _check_file_name(path)
            parts[name] = read_part(path)
        except SiteError as error:
            broken[name] = error
    return parts, broken


def _check_file_name(path: str) -> None:
    name, suffix = os.path.splitext(os.path.basename(path))
    if suffix != SUFFIX:
        raise SiteError(f"{path}: cannot use the file's name", f"name it {name}{SUFFIX}")
    if name == NONE:
        raise SiteError(f"{path}: {NONE} cannot be an environment: it stands for no container")
    if not is_name(name):
        raise SiteError(
            f"{path}: {name!r} cannot be the name of an environment",
            "use up to 63 lower-case letters, digits, dots, dashes and underscores",
        )


def _bases(name: str, part: Part, find: Find) -> List[Part]:
    """The parts that make up an environment, the farthest base first."""
    names, chain = [name], [part]
    while part.base:
        base = part.base.string()
        if base in names:
            loop = " → ".join([*names[names.index(base) :], base])
            raise part.base.error(f"base leads back to itself: {loop}")
        found = find(base)
        if found is None:
            raise part.base.error(f"there is no environment {base!r} to be the base")
        part = found
        names.append(base)
        chain.append(part)
    return chain[::-1]


def _last(values: Sequence[Optional[Parsed]]) -> Optional[Parsed]:
    """What the nearest part says of those that say anything."""
    return next((value for value in reversed(values) if value is not None), None)


def _base(value: Value) -> Value:
    if not is_name(value.string()):
        raise value.error(f"base must be the name of an environment, not {value.string()!r}")
    return value


def _image(value: Value) -> str:
    reference = value.string()
    if not reference or any(character.isspace() for character in reference):
        raise value.error(f"image must be a reference such as debian:12, not {reference!r}")
    return reference


def _description(value: Value) -> str:
    return " ".join(value.string().split())


def _workdir(value: Value) -> str:
    path = value.string()
    if not path.startswith("/") or ".." in path.split("/") or "$" in path or "\0" in path:
        raise value.error(f"workdir must be an absolute path in the image, not {path!r}")
    return path


def _accounts(value: Value) -> Tuple[str, ...]:
    names = [item.string() for item in value.items()]
    for name in names:
        # The two characters that cannot be in a name, by passwd(5) and group(5).
        if not name or ":" in name or "\n" in name:
            raise value.error(f"{value.name} holds {name!r}, which is no name of an account")
    return tuple(names)


def _variables(value: Value) -> Tuple[Variable, ...]:
    actions = value.entries(ACTIONS)
    changes = [
        change
        for action in ACTIONS
        if action in actions
        for change in _changes(action, actions[action])
    ]
    unset = {change.name for change in changes if change.action == "unset"}
    for change in changes:
        if change.action != "unset" and change.name in unset:
            raise SiteError(f"{change.origin}: {change.name} is both unset and {change.action}")
    return tuple(changes)


def _changes(action: str, value: Value) -> List[Variable]:
    if action == "unset":
        return [
            Variable(action, _variable_name(item.string(), item), "", item.origin)
            for item in value.items()
        ]
    return [
        Variable(action, _variable_name(name, entry), _variable_value(entry), entry.origin)
        for name, entry in value.entries().items()
    ]


def _variable_name(name: str, value: Value) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise value.error(f"{name!r} cannot be the name of a variable")
    if name.startswith(RESERVED_VARIABLES):
        raise value.error(f"{name} is for hpcwrap to set", f"{RESERVED_VARIABLES}* are reserved")
    return name


def _variable_value(value: Value) -> str:
    text = value.string()
    if "\0" in text:
        raise value.error(f"{value.name} holds a NUL byte")
    return text
