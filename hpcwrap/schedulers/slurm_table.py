"""The table of environments that submit/slurm.lua looks jobs up in: made from the configuration.

Pure text here; who writes it where is in hpcwrap/verbs/setup.py.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, List, Mapping, NamedTuple, Optional, Sequence

from hpcwrap.config import Config
from hpcwrap.environment import Environment
from hpcwrap.schedulers.filtertable import FEW, Digests, make_hint, pins_until
from hpcwrap.templates import make_engine

if TYPE_CHECKING:
    import jinja2

VERSION = 2
TEMPLATE = "slurm_table.lua.j2"


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
        engine()
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


def make_row(environment: Environment, digests: Sequence[str], accounts: Accounts) -> Row:
    """Describe one environment by numbers; users whom the host does not know are left out."""
    return Row(
        name=environment.name,
        digests=digests,
        restricted=bool(environment.users or environment.groups),
        uids=sorted(accounts.uids[user] for user in environment.users if user in accounts.uids),
        groups=environment.groups,
    )


def named_users(config: Config) -> List[str]:
    """All users that environments are limited to."""
    return sorted({user for known in config.environments.values() for user in known.users})


def named_groups(config: Config) -> List[str]:
    """All groups that environments are limited to."""
    return sorted({group for known in config.environments.values() for group in known.groups})


def engine() -> jinja2.Environment:
    """What renders the templates that are Lua: their filters do the quoting."""
    return make_engine(lua=lua_literal, comment=comment_text)


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
