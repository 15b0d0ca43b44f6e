"""The table of environments that submit/slurm.lua looks jobs up in: made from the configuration.

Pure text here; who writes it where is in hpcwrap/verbs/setup.py.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import paths
from hpcwrap.config import Config
from hpcwrap.environment import Environment

if TYPE_CHECKING:
    import jinja2

VERSION = 2
FEW = 10
"""So many environments are listed to a user who mistypes a name; of more, only the nearest."""

TEMPLATE = "slurm_table.lua.j2"

HOUR = 3600
PINS_LAST = {"always": HOUR, "hourly": 2 * HOUR, "daily": 48 * HOUR, "weekly": 336 * HOUR}
"""Seconds for which the table's digests pin jobs, by the setting pull: where jobs have tags looked
up again, a table that nobody renews must not hold them back for ever."""

Digests = Mapping[str, Sequence[str]]
"""Name of an environment → the digests that its image has had, the one it has now first."""


class Accounts(NamedTuple):
    """Numbers of users and groups: `uids` by user name, `members` by group name.

    A group whose members cannot be listed (a directory service that does not enumerate) has None:
    then the prolog decides, which asks for one user.
    """

    uids: Mapping[str, int]
    members: Mapping[str, Optional[Sequence[int]]]


class Row(NamedTuple):
    """One environment as the template wants it; `restricted` when not everyone may use it."""

    name: str
    digests: Sequence[str]
    restricted: bool
    uids: List[int]
    groups: Sequence[str]


def render_table(
    config: Config,
    digests: Digests,
    accounts: Accounts,
    *,
    clear_container: bool,
    now: float = 0.0,
) -> str:
    """Write the table as Lua.

    `digests` has those environments whose image is in the store; `now` is an epoch in s.
    `clear_container` is for sites with an oci.conf, where Slurm would take the name for the path
    of a bundle.
    """
    settings = config.settings
    return (
        make_engine()
        .get_template(TEMPLATE)
        .render(
            version=VERSION,
            origin=config.path,
            allow_none=settings.allow_none,
            user_images=settings.user_images,
            allow_images=[lua_pattern(pattern) for pattern in settings.allow_images],
            allow_hint=", ".join(settings.allow_images[:FEW]),
            pins_until=pins_until(settings.pull, now),
            clear_container=clear_container,
            hint=make_hint(sorted(config.environments)),
            defaults=settings.defaults["slurm"],
            environments=[
                make_row(environment, digests.get(name, ()), accounts)
                for name, environment in sorted(config.environments.items())
            ],
            broken=sorted(config.broken),
            members={group: accounts.members.get(group) for group in named_groups(config)},
        )
    )


def pins_until(pull: str, now: float) -> Optional[int]:
    """Epoch in s up to which the table's digests count; None for ever."""
    return int(now) + PINS_LAST[pull] if pull in PINS_LAST else None


def make_row(environment: Environment, digests: Sequence[str], accounts: Accounts) -> Row:
    """Describe one environment by numbers; users whom the host does not know are left out."""
    return Row(
        name=environment.name,
        digests=digests,
        restricted=bool(environment.users or environment.groups),
        uids=sorted(accounts.uids[user] for user in environment.users if user in accounts.uids),
        groups=environment.groups,
    )


def make_hint(names: Sequence[str]) -> str:
    """Say what there is to somebody who named what there is not."""
    if not names:
        return "this site has no environments"
    return f"known are {', '.join(names)}" if len(names) <= FEW else "see `hpcwrap env list`"


def named_users(config: Config) -> List[str]:
    """All users that environments are limited to."""
    return sorted({user for known in config.environments.values() for user in known.users})


def named_groups(config: Config) -> List[str]:
    """All groups that environments are limited to."""
    return sorted({group for known in config.environments.values() for group in known.groups})


def make_engine() -> jinja2.Environment:
    """Make what renders the templates; a hole without a value is an error."""
    # 20 ms, which a pull that writes no table does not pay.
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.data("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  Lua and Slurm's files: the filters below do their quoting
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    engine.filters["lua"] = lua_literal
    engine.filters["comment"] = comment_text
    return engine


def lua_literal(value: object) -> str:
    """Write a string, number or truth value as Lua (reference manual, 2.1).

    Bytes other than printable ASCII become decimal escapes, so that no text can end its quotes.

    >>> lua_literal('a"b')
    '"a\\\\034b"'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raw = os.fsencode(str(value))
    return '"' + "".join(_escape(byte) for byte in raw) + '"'


def comment_text(value: str) -> str:
    """Keep a text within its line, for comments."""
    return "".join(character if character.isprintable() else "?" for character in value)


def _escape(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in (ord('"'), ord("\\"))
    return chr(byte) if plain else f"\\{byte:03d}"


def lua_pattern(pattern: str) -> str:
    """A pattern of the setting allow_images (image/allow.py) in Lua's language.

    >>> lua_pattern("ghcr.io/*/x:**")
    '^ghcr%.io/[^/]*/x%:.*$'
    """
    wild = {"*": "[^/]*", "**": ".*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    return "^" + "".join(wild.get(part) or _literal(part) for part in parts) + "$"


def _literal(text: str) -> str:
    # "%" before anything but a letter or digit stands for it (reference manual, 5.4.1).
    return re.sub(r"([!-.:-@\[-`{-~])", r"%\1", text)


def digests_of(config: Config, found: Mapping[str, Sequence[str]]) -> Dict[str, Tuple[str, ...]]:
    """Name → digests, from reference → digests: environments share an image here, too."""
    return {
        name: tuple(digests)
        for name, known in config.environments.items()
        for digests in [found.get(known.image)]
        if digests
    }
