"""Environments as data: what a site offers under one name, and the fstab lines in it.

The prolog imports this module for every job: it stays small and imports little.  How environments
are read from YAML files is in `environmentfile`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, Optional, Sequence, Tuple

from hpcwrap.errors import SiteError, UserError
from hpcwrap.hints import closest

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,62}"
"""An environment's name; `none` is taken: `--container=none` opts out of a default."""

MOUNT_GRAMMAR = "SOURCE [TARGET [TYPE [OPTIONS]]]"
MOUNT_TYPES = {"none": "bind", "bind": "bind", "tmpfs": "tmpfs"}
MOUNT_FLAGS = ("ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec", "nofail")
MOUNT_SIZES = {"size": r"[0-9]+[kKmMgG%]?", "mode": r"[0-7]{3,4}"}
MOUNT_VARIABLES = ("USER", "UID", "HOME", "JOB")
"""What a source or target may hold as $NAME; the prolog fills them in for each job."""

RLIMITS = ("memlock", "stack", "nofile", "nproc", "core", "data", "rss", "as", "fsize")
"""Limits that a site may set: setrlimit(2), in lower case."""

UNLIMITED = -1

GPUS = ("scheduler", "all", "none")
FABRICS = ("image", "host", "none")
MPIS = ("image", "host")
DEVICE_PATTERN = (
    r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
    r"=[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?"
)
"""A fully-qualified name of a CDI device: vendor/class=name (CDI's SPEC.md)."""

OPPOSITES = (("ro", "rw"), ("bind", "rbind"))

ESCAPES = {" ": "\\040", "\t": "\\011", "\n": "\\012", "\\": "\\134"}
"""What fstab(5) escapes, so that a field holds no white space."""


class Mount(NamedTuple):
    """One mount of the site: an fstab line, read.

    `type` is ``bind`` or ``tmpfs``, `options` are as they were written, `origin` is ``file:line``.
    """

    source: str
    target: str
    type: str
    options: Tuple[str, ...]
    origin: str


class Variable(NamedTuple):
    """One change to a job's variables: `action` is set, prepend, append or unset.

    Of devices also ``renumber``, with OLD=NEW,… as its value (gpus.new_numbers).
    """

    action: str
    name: str
    value: str
    origin: str = ""


class Rlimit(NamedTuple):
    """A resource limit of every process, setrlimit(2): -1 is unlimited; bytes, counts or s."""

    name: str
    soft: int
    hard: int


class Machine(NamedTuple):
    """What of the job's machine a container gets; None is what an environment does not say.

    `gpus` is ``scheduler`` (those that it gave the job), ``all`` or ``none``; for `hpcwrap run`
    also a list, ``0,1``.  `fabric` and `mpi` say whose libraries: ``image`` or ``host``; a fabric
    may be ``none``, too.  `devices` are names of CDI devices that every job gets,
    ``vendor.example/class=name``.  `shm_size` is that of /dev/shm as text, "0" for the host's own.
    """

    gpus: Optional[str] = None
    fabric: Optional[str] = None
    mpi: Optional[str] = None
    devices: Optional[Tuple[str, ...]] = None
    rlimits: Tuple[Rlimit, ...] = ()
    shm_size: Optional[str] = None


class Environment(NamedTuple):
    """A named set of image, mounts and variables, after inheritance.

    `image` is a reference as text.  Empty `users` and `groups` mean everyone.  `origin` is the
    file that it is described in.
    """

    name: str
    image: str
    description: str
    mounts: Tuple[Mount, ...]
    variables: Tuple[Variable, ...]
    workdir: Optional[str]
    users: Tuple[str, ...]
    groups: Tuple[str, ...]
    origin: str
    base: Optional[str] = None
    machine: Machine = Machine()


def is_name(text: str) -> bool:
    """True for what may be the name of an environment."""
    return re.fullmatch(NAME_PATTERN, text) is not None and text != "none"


def allowed(environment: Environment, user_name: str, group_names: Sequence[str]) -> bool:
    """True when the user, or one of the user's groups, may use the environment."""
    if not environment.users and not environment.groups:
        return True
    return user_name in environment.users or bool(set(group_names) & set(environment.groups))


def refusal(environment: Environment, user_name: str) -> UserError:
    """What a user is told who may not use the environment."""
    groups = " or ".join(environment.groups)
    reason = f"it is for members of the group {groups}" if groups else "it is for named users"
    return UserError(
        f"{user_name} may not use the environment {environment.name}: {reason}",
        "ask the administrators for access, or see `hpcwrap env list`",
    )


def parse_mount(line: str, origin: str) -> Mount:
    r"""Read ``SOURCE [TARGET [TYPE [OPTIONS]]]``, an fstab(5) line with fstab's escapes (\040).

    A missing target is the source, a missing type is a bind mount.  Raises SiteError naming
    `origin` (``file:line``) for whatever is not as it should be.
    """
    fields = re.findall(r"[^ \t\n]+", line)
    if not 1 <= len(fields) <= 4:
        hint = "fstab's last two numbers have no meaning here" if len(fields) > 4 else ""
        _refuse(origin, line, f"it is not {MOUNT_GRAMMAR}", hint)
    source, target, kind, options = fields + [fields[0], "none", ""][len(fields) - 1 :]
    if kind not in MOUNT_TYPES:
        _refuse(origin, line, f"unknown type {kind}", closest(kind, list(MOUNT_TYPES)))
    mount = Mount(
        source=_unescape(source),
        target=_unescape(target),
        type=MOUNT_TYPES[kind],
        options=tuple(options.split(",")) if options else (),
        origin=origin,
    )
    _check_mount(mount, line)
    return mount


def format_mount(mount: Mount) -> str:
    """Write a mount as the fstab line that `parse_mount` reads back."""
    fields = [_escape(mount.source), _escape(mount.target), mount.type, ",".join(mount.options)]
    return " ".join(field for field in fields if field)


def _check_mount(mount: Mount, line: str) -> None:
    if mount.type == "bind":
        _check_path(mount.source, "source", mount.origin, line)
    _check_path(mount.target, "target", mount.origin, line)
    if mount.target.strip("/") == "":
        _refuse(mount.origin, line, "the root is the image's own", "mount below it")
    for option in mount.options:
        _check_option(mount, option, line)
    for first, second in OPPOSITES:
        if first in mount.options and second in mount.options:
            _refuse(mount.origin, line, f"{first} and {second} exclude each other")


def _check_path(path: str, role: str, origin: str, line: str) -> None:
    for name in re.findall(r"\$(\w*)", path):
        if name not in MOUNT_VARIABLES:
            known = ", ".join("$" + variable for variable in MOUNT_VARIABLES)
            _refuse(origin, line, f"unknown variable ${name}", f"known are {known}")
    if not re.match(r"/|\$HOME(/|$)", path):
        _refuse(
            origin, line, f"the {role} {path!r} is no absolute path", "start it with / or $HOME"
        )
    if ".." in path.split("/"):
        _refuse(origin, line, f"the {role} holds ..", "write the path that is meant")
    if "\0" in path:
        _refuse(origin, line, f"the {role} holds a NUL byte")


def _check_option(mount: Mount, option: str, line: str) -> None:
    name, equals, value = option.partition("=")
    if equals and name in MOUNT_SIZES:
        if mount.type != "tmpfs":
            _refuse(mount.origin, line, f"{name}= is for tmpfs only")
        if not re.fullmatch(MOUNT_SIZES[name], value):
            example = "64m" if name == "size" else "1777"
            _refuse(mount.origin, line, f"{option} is no {name}", f"write {name}={example}")
    elif option not in MOUNT_FLAGS:
        known = [*MOUNT_FLAGS, *(size + "=" for size in MOUNT_SIZES)]
        _refuse(mount.origin, line, f"unknown option {option!r}", closest(option, known))
    elif mount.type == "tmpfs" and option in ("bind", "rbind"):
        _refuse(mount.origin, line, f"{option} has no meaning for tmpfs")


def _refuse(origin: str, line: str, reason: str, hint: str = "") -> NoReturn:
    raise SiteError(f"{origin}: cannot use the mount {line.strip()!r}: {reason}", hint)


def _unescape(field: str) -> str:
    # Octal codes are bytes: a path's é may come as \303\251.
    raw = re.sub(rb"\\([0-3][0-7]{2})", _byte, field.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def _byte(code: re.Match[bytes]) -> bytes:
    return bytes([int(code.group(1), 8)])


def _escape(field: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in field)


def target_key(mount: Mount) -> str:
    """The target as it compares with others: without doubled and trailing slashes."""
    return "/" + "/".join(part for part in mount.target.split("/") if part)


def format_rlimit(limit: Rlimit) -> str:
    """Write a limit as `parse_rlimit` reads it back."""
    soft, hard = ("unlimited" if each == UNLIMITED else str(each) for each in limit[1:])
    return f"{limit.name}={soft}" if soft == hard else f"{limit.name}={soft}:{hard}"


def parse_rlimit(text: str) -> Rlimit:
    """Read ``NAME=SOFT[:HARD]``; one value is both.

    Raises ValueError with the reason.
    """
    name, sign, values = text.partition("=")
    if name not in RLIMITS or not sign:
        raise ValueError(f"{text!r} is no NAME=SOFT[:HARD]; names are {', '.join(RLIMITS)}")
    soft, _, hard = values.partition(":")
    limit = Rlimit(name, _rlimit_value(soft, text), _rlimit_value(hard or soft, text))
    if limit.hard != UNLIMITED and not UNLIMITED < limit.soft <= limit.hard:
        raise ValueError(f"{text!r} has a soft limit above the hard one")
    return limit


def _rlimit_value(value: str, text: str) -> int:
    if value in ("unlimited", "infinity"):
        return UNLIMITED
    match = re.fullmatch(r"([0-9]{1,18})([kmgt]?)", value, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r}: {value!r} is neither a number such as 64m nor unlimited")
    return int(match.group(1)) << 10 * " kmgt".index(match.group(2).lower() or " ")


def replace_rlimits(earlier: Sequence[Rlimit], later: Sequence[Rlimit]) -> Tuple[Rlimit, ...]:
    """Add limits to those of an earlier layer; one of the same name takes its place."""
    return tuple({limit.name: limit for limit in (*earlier, *later)}.values())


def replace_mounts(earlier: Sequence[Mount], later: Sequence[Mount]) -> Tuple[Mount, ...]:
    """Add mounts to those of an earlier layer; one on the same target takes its place."""
    targets = {target_key(mount) for mount in later}
    kept = [mount for mount in earlier if target_key(mount) not in targets]
    return (*kept, *later)


def replace_variables(
    earlier: Sequence[Variable], later: Sequence[Variable]
) -> Tuple[Variable, ...]:
    """Add changes of variables to those of an earlier layer, in the order they are made.

    A later set or unset makes all earlier changes of that variable void.
    """
    void = {variable.name for variable in later if variable.action in ("set", "unset")}
    return (*(variable for variable in earlier if variable.name not in void), *later)
