"""What `hpcwrap setup` does to a host for any scheduler; all of it may be run again."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Callable, List, Mapping, Optional

from hpcwrap import config, paths, run
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.finding import MISSING, WELL, Finding

PROGRAMS: Mapping[str, Callable[[], str]] = {
    "hpcwrap-enter": paths.enter_program,
    "hpcwrap-host": paths.host_program,
    "hpcwrap-launch": paths.launch_program,
    "hpcwrap-singularity": paths.singularity_program,
    "hpcwrap-starter": paths.starter_program,
    "hpcwrap-tell": paths.tell_program,
    "hpcwrap-wait": paths.wait_program,
}
"""What native/Makefile calls a program, and where it is installed."""


def need_root() -> None:
    """Raise UserError for ordinary users."""
    if os.geteuid() != 0:
        raise UserError("cannot set up this host: that needs root")


# ---- the C parts ----


def explain_build(error: run.CommandError) -> HpcwrapError:
    """Say why the C parts could not be built."""
    return SiteError(f"cannot build the C parts: {run.last_line(error.stderr)}")


def build(
    goal: str = "program",
    programs: Mapping[str, Callable[[], str]] = PROGRAMS,
    *,
    anew: bool = False,
    explain: Callable[[run.CommandError], HpcwrapError] = explain_build,
) -> str:
    """Make a goal of native/Makefile and put its programs in place, where they are out of date.

    Returns what was done.  Raises HpcwrapError, as `explain` makes it of make's.
    """
    targets = {name: target() for name, target in programs.items()}
    places = " and ".join(sorted({os.path.dirname(target) for target in targets.values()}))
    if not anew and is_up_to_date(list(targets.values())):
        return f"the programs in {places} are up to date"
    make = run.need_program("make", "make")
    run.need_program("cc", "gcc")
    with tempfile.TemporaryDirectory(prefix="hpcwrap-") as directory:
        try:
            run.output([make, "-s", "-C", paths.data("native"), f"BUILD={directory}", goal])
        except run.CommandError as error:
            raise explain(error) from error
        for name, target in targets.items():
            publish_program(os.path.join(directory, name), target)
    return f"built {', '.join(targets)} in {places}"


def is_up_to_date(programs: List[str]) -> bool:
    """True when all programs are there and none is older than the newest source."""
    if not all(map(os.path.exists, programs)):
        return False
    native = paths.data("native")
    sources = [entry.stat().st_mtime for entry in os.scandir(native) if entry.is_file()]
    return max(sources) <= min(map(os.path.getmtime, programs))


def publish_program(source: str, target: str) -> None:
    """Put a file in place by rename: daemons may have the old one mapped."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = f"{target}.{os.getpid()}"
    shutil.copyfile(source, temporary)
    os.chmod(temporary, 0o755)  # noqa: S103  a program or a library, for all to execute
    os.rename(temporary, target)


def check_programs(scheduler: str) -> List[Finding]:
    """See whether the programs have been compiled."""
    return [check_program(target(), scheduler) for target in PROGRAMS.values()]


def check_program(path: str, scheduler: str) -> Finding:
    """See whether a program has been compiled."""
    there = os.access(path, os.X_OK)
    detail = path if there else f"{path}: run `hpcwrap setup {scheduler}`"
    return Finding("programs", os.path.basename(path), WELL if there else MISSING, detail)


# ---- settings and directories ----


def install_settings(file: str) -> str:
    """Install the shipped settings, unless there are settings."""
    if os.path.exists(file):
        return f"{file} is there already and stays as it is"
    shutil.copytree(
        paths.data("conf"), os.path.dirname(file), copy_function=copy_new, dirs_exist_ok=True
    )
    return f"installed {file}"


def copy_new(source: str, target: str) -> str:
    """Copy a file unless there is one."""
    return target if os.path.exists(target) else shutil.copy(source, target)


def make_directories(settings: config.Settings) -> str:
    """Make the store's directory and the log's; root's, readable by all."""
    for path in (settings.store, os.path.dirname(settings.log)):
        os.makedirs(path, mode=0o755, exist_ok=True)
    return f"the store is {settings.store}"


def prepare(config_file: Optional[str]) -> List[str]:
    """All of this for a scheduler without a C part of its own: a line for each step.

    Raises HpcwrapError.
    """
    need_root()
    done = [build(), install_settings(config.settings_file(config_file))]
    return [*done, make_directories(config.load_config(config_file).settings)]
