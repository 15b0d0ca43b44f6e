"""What Grid Engine's job filter knows of environments: a JSON file, made from the configuration.

The filter holds a thread of qmaster's while it answers, so it reads no store and no YAML; and it
runs as the admin user, who may not be able to.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from hpcwrap.config import Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.errors import SiteError
from hpcwrap.schedulers.filtertable import pins_until

VERSION = 1

SETTINGS = ("user_images", "allow_images", "allow_none")


class Table(NamedTuple):
    """Environments by name, without their files; `digests` by name, the one that counts now.

    `settings` has those of SETTINGS and the defaults of Grid Engine alone.  `pins_until` is an
    epoch in s, None for ever.
    """

    settings: Settings
    environments: Mapping[str, Environment]
    broken: Sequence[str]
    digests: Mapping[str, str]
    pins_until: Optional[int]


def render(config: Config, digests: Mapping[str, str], now: float) -> str:
    """Write the table; `digests` are those of images in the store, by environment's name."""
    settings = config.settings
    document = {
        "version": VERSION,
        "settings": {
            **{name: getattr(settings, name) for name in SETTINGS},
            "defaults": settings.defaults["gridengine"],
        },
        "environments": {
            name: {"users": known.users, "groups": known.groups, "digest": digests.get(name, "")}
            for name, known in sorted(config.environments.items())
        },
        "broken": sorted(config.broken),
        "pins_until": pins_until(settings.pull, now),
    }
    return json.dumps(document, indent=1) + "\n"


def parse(text: str) -> Table:
    """Read a table.

    Raises ValueError, LookupError, TypeError or AttributeError for another file.
    """
    document: Dict[str, Any] = json.loads(text)
    if document["version"] != VERSION:
        raise ValueError("it is of another version of hpcwrap")
    said = document["settings"]
    settings = Settings(
        user_images=said["user_images"],
        allow_images=tuple(said["allow_images"]),
        allow_none=said["allow_none"],
        defaults={"gridengine": said["defaults"]},
    )
    rows = document["environments"]
    return Table(
        settings,
        {name: _environment(name, row) for name, row in rows.items()},
        document["broken"],
        {name: row["digest"] for name, row in rows.items() if row["digest"]},
        document["pins_until"],
    )


def _environment(name: str, row: Mapping[str, List[str]]) -> Environment:
    users, groups = tuple(row["users"]), tuple(row["groups"])
    return Environment(name, "", "", (), (), None, users, groups, "")


class Reader:
    """Reads the table anew when it has changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp: Tuple[int, int] = (0, 0)
        self._table: Optional[Table] = None

    def read(self) -> Table:
        """The table as it is now.  Raises SiteError."""
        try:
            status = os.stat(self.path)
            stamp = (status.st_mtime_ns, status.st_ino)
            if self._table is None or stamp != self._stamp:
                with open(self.path, encoding="utf-8") as file:
                    self._table, self._stamp = parse(file.read()), stamp
            return self._table
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SiteError(
                f"cannot read {self.path}: {error}",
                "an administrator has to run `hpcwrap setup gridengine --table` where sge_qmaster "
                "runs",
            ) from None
