"""What the tables of all schedulers' filters say alike: which digests count, and until when."""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Sequence, Tuple

from hpcwrap.config import Config

FEW = 10
"""So many environments are listed to a user who mistypes a name; of more, only the nearest."""

HOUR = 3600
PINS_LAST = {"always": HOUR, "hourly": 2 * HOUR, "daily": 48 * HOUR, "weekly": 336 * HOUR}
"""Seconds for which the table's digests pin jobs, by the setting pull: where jobs have tags looked
up again, a table that nobody renews must not hold them back for ever."""

Digests = Mapping[str, Sequence[str]]
"""Name of an environment → the digests that its image has had, the one it has now first."""


def pins_until(pull: str, now: float) -> Optional[int]:
    """Epoch in s up to which the table's digests count; None for ever."""
    return int(now) + PINS_LAST[pull] if pull in PINS_LAST else None


def make_hint(names: Sequence[str]) -> str:
    """Say what there is to somebody who named what there is not."""
    if not names:
        return "this site has no environments"
    return f"known are {', '.join(names)}" if len(names) <= FEW else "see `hpcwrap env list`"


def digests_of(config: Config, found: Mapping[str, Sequence[str]]) -> Dict[str, Tuple[str, ...]]:
    """Name → digests, from reference → digests: environments share an image here, too."""
    return {
        name: tuple(digests)
        for name, known in config.environments.items()
        for digests in [found.get(known.image)]
        if digests
    }
