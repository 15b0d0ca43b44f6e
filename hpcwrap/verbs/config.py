"""hpcwrap config: every setting, its value and where it came from."""

from __future__ import annotations

import argparse
import json
import os
from typing import Callable, Dict, Iterator, List, NamedTuple, Union

from hpcwrap import config, log, settingsfile
from hpcwrap.config import Config, Row
from hpcwrap.container import mpi
from hpcwrap.environment import format_mount
from hpcwrap.errors import EXIT_SITE, SiteError, UserError
from hpcwrap.image.allow import check_source
from hpcwrap.image.credentials import site_auth
from hpcwrap.image.source import parse_source
from hpcwrap.table import print_table
from hpcwrap.verbs.pullview import count


class Shown(NamedTuple):
    """One line of the answer: a setting, one of its mounts or one of its defaults."""

    name: str
    value: Union[str, int, bool]
    origin: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument(
        "--check",
        action="store_true",
        help="read all files and tell what is wrong; the exit code is 3 if anything is",
    )
    how.add_argument(
        "--defaults",
        action="store_true",
        help="print a settings file that holds every setting, commented out, with its default",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show, check, or print the settings file that is shipped."""
    if arguments.defaults:
        print(settingsfile.format_defaults(), end="")
        return 0
    loaded = config.load_config(arguments.config)
    if arguments.check:
        return check(loaded)
    rows = shown(loaded)
    if arguments.json:
        print(json.dumps({"file": loaded.path, "settings": [r._asdict() for r in rows]}, indent=2))
    else:
        print_table(("setting", "value", "from"), [_cells(row) for row in rows])
    return 0


def check(loaded: Config) -> int:
    """Tell every problem; the settings themselves are well, or they could not be loaded."""
    problems = [*loaded.problems().values(), *image_problems(loaded), *file_problems(loaded)]
    for sentence in dict.fromkeys(error.sentence() for error in problems):
        log.say(sentence)
    if problems:
        return EXIT_SITE
    environments = count(len(loaded.environments), "environment")
    print(f"{loaded.path}: the settings and {environments} are well")
    return 0


def image_problems(loaded: Config) -> Iterator[SiteError]:
    """Images that cannot be there or are not allowed; a job would find out when it pulls."""
    for name, environment in loaded.environments.items():
        try:
            check_source(parse_source(environment.image), loaded.settings.allow_images)
        except UserError as error:
            origin = loaded.environment_origins[name]["image"]
            yield SiteError(f"{origin}: {error.message}", error.hint)


def file_problems(loaded: Config) -> Iterator[SiteError]:
    """Files that settings name and that cannot be used; a pull would find out."""
    for name in ("policy", "registries_conf"):
        path = getattr(loaded.settings, name)
        if path and not os.access(path, os.R_OK):
            yield SiteError(f"{loaded.origins[name]}: cannot read {path}, which {name} names")
    uses: Dict[str, Callable[[], object]] = {
        "mpi_libraries": lambda: mpi.refuse_doubles(loaded.settings.mpi_libraries)
    }
    if os.geteuid() == 0:  # nobody else may read the passwords
        uses["auth_file"] = lambda: site_auth(loaded.settings)
    for name, use in uses.items():
        try:
            use()
        except SiteError as error:
            yield SiteError(f"{loaded.origins[name]}: {error.message}", error.hint)


def shown(loaded: Config) -> List[Shown]:
    """All settings in the order of their table; mounts and defaults each on a line of its own."""
    return [each for row in config.ROWS for each in _shown(row, loaded)]


def _shown(row: Row, loaded: Config) -> List[Shown]:
    settings, origins = loaded.settings, loaded.origins
    if row.kind == "mounts":
        parts = [Shown(row.name, format_mount(each), each.origin) for each in settings.mounts]
    elif row.kind == "patterns":
        patterns = getattr(settings, row.name)
        parts = [Shown(row.name, each, origins[row.name]) for each in patterns]
    elif row.kind == "defaults":
        names = config.all_defaults(settings.defaults)
        parts = [Shown(place, name, origins[place]) for place, name in names]
    else:
        return [Shown(row.name, getattr(settings, row.name), origins[row.name])]
    return parts or [Shown(row.name, "", origins[row.name])]


def _cells(row: Shown) -> List[str]:
    value = str(row.value).lower() if isinstance(row.value, bool) else str(row.value)
    return [row.name, value or "-", row.origin]
