"""hpcwrap setup: connect hpcwrap to a scheduler, or check that it is."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import Iterator, List, Optional, Protocol, Tuple, cast

from hpcwrap.errors import EXIT_SITE, SiteError, UserError
from hpcwrap.finding import NOTE, WELL, Finding, is_well
from hpcwrap.table import print_table

SCHEDULERS = ("slurm", "gridengine", "htcondor", "pbs", "lsf")


class Setup(Protocol):
    """What `hpcwrap.verbs.setup_<scheduler>` has: functions, each given the settings file to read.

    All may be run again at any time.  `config_file` is as for `config.settings_file`.
    """

    FILES: Tuple[str, ...]
    """The scheduler's files or objects that `--lines` knows; the order in which to change them."""

    AFTERWARDS: str
    """What the administrator does when the lines are added: ``restart slurmctld and slurmd``."""

    def install(self, config_file: Optional[str]) -> Iterator[str]:
        """Do what hpcwrap can do by itself; yields a line for each step.  Raises HpcwrapError."""

    def where(self, config_file: Optional[str], file: str) -> str:
        """Say where the lines of one of FILES belong: its path, or a command that takes them."""

    def lines(self, config_file: Optional[str], file: str) -> str:
        """Write what one of FILES still lacks; empty when it has all, or is no business of here."""

    def write_table(self, config_file: Optional[str]) -> str:
        """Tell the scheduler anew which environments there are; says what was done."""

    def check(self, config_file: Optional[str]) -> List[Finding]:
        """Look at everything that a job with a container needs here; changes nothing."""


def load(scheduler: str) -> Setup:
    """Import a scheduler's module.  Raises SiteError where this hpcwrap does not have it."""
    if not is_there(scheduler):
        spoken = ", ".join(filter(is_there, SCHEDULERS))
        raise SiteError(
            f"cannot set up {scheduler}: this hpcwrap does not speak it", f"it speaks {spoken}"
        )
    return cast(Setup, importlib.import_module(module_of(scheduler)))


def is_there(scheduler: str) -> bool:
    """Whether this hpcwrap can set up a scheduler."""
    return importlib.util.find_spec(module_of(scheduler)) is not None


def module_of(scheduler: str) -> str:
    """The module that sets up a scheduler."""
    return f"hpcwrap.verbs.setup_{scheduler}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("scheduler", choices=SCHEDULERS, help="the scheduler of this site")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--check",
        action="store_true",
        help="change nothing, say what is missing or wrong; the exit code is 3 if anything is",
    )
    how.add_argument(
        "--lines",
        metavar="FILE",
        help="print what to add to one of the scheduler's files, such as slurm.conf",
    )
    how.add_argument(
        "--table",
        action="store_true",
        help="tell the scheduler anew which environments there are; to be run where its server "
        "runs, after an environment, a group or an image has changed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Install, check, print lines or write the table."""
    setup = load(arguments.scheduler)
    if arguments.check:
        return check(setup, arguments.config)
    if arguments.lines:
        print(setup.lines(arguments.config, known_file(setup, arguments)), end="")
    elif arguments.table:
        print(setup.write_table(arguments.config))
    else:
        install(setup, arguments)
    return 0


def known_file(setup: Setup, arguments: argparse.Namespace) -> str:
    """The file that --lines names.  Raises UserError where the scheduler has no such file."""
    file: str = arguments.lines
    if file not in setup.FILES:
        known = ", ".join(setup.FILES) or "none: `setup` itself does all"
        raise UserError(f"cannot print lines for {file}", f"{arguments.scheduler} has {known}")
    return file


def install(setup: Setup, arguments: argparse.Namespace) -> None:
    """Do what hpcwrap can do, then say what is left to the administrator."""
    for done in setup.install(arguments.config):
        print(done)
    texts = {file: setup.lines(arguments.config, file) for file in setup.FILES}
    for file, text in texts.items():
        if text:
            print(f"\nadd to {setup.where(arguments.config, file)}:\n\n{text}", end="")
    if any(texts.values()):
        then = f"`hpcwrap setup {arguments.scheduler} --check`"
        print(f"\nthen {setup.AFTERWARDS}, and see {then}")


def check(setup: Setup, config_file: Optional[str]) -> int:
    """Print what was looked at; EXIT_SITE when anything is missing or wrong."""
    findings = setup.check(config_file)
    order = {WELL: 2, NOTE: 1}
    findings.sort(key=lambda finding: order.get(finding.state, 0))
    print_table(("state", "where", "what", "detail"), [_cells(finding) for finding in findings])
    return 0 if is_well(findings) else EXIT_SITE


def _cells(finding: Finding) -> List[str]:
    return [finding.state, finding.file, finding.what, finding.detail]
