"""hpcwrap setup: connect hpcwrap to a scheduler, or check that it is."""

from __future__ import annotations

import argparse
from typing import List

from hpcwrap.errors import EXIT_SITE
from hpcwrap.schedulers.slurm_files import FILES, NOTE, WELL, Finding, is_well
from hpcwrap.table import print_table
from hpcwrap.verbs import setup_slurm


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("scheduler", choices=("slurm",), help="the scheduler of this site")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--check",
        action="store_true",
        help="change nothing, say what is missing or wrong; the exit code is 3 if anything is",
    )
    how.add_argument(
        "--lines", choices=FILES, metavar="FILE", help=f"print what to add to {', '.join(FILES)}"
    )
    how.add_argument(
        "--table",
        action="store_true",
        help="write the scheduler's table of environments anew and have it read; to be run on the "
        "controller after an environment, a group or an image has changed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Install, check, print lines or write the table."""
    site = setup_slurm.load_site(arguments.config)
    if arguments.check:
        return check(site)
    if arguments.lines:
        print(setup_slurm.lines(site, arguments.lines), end="")
    elif arguments.table:
        print(setup_slurm.write_table(site))
    else:
        install(arguments)
    return 0


def install(arguments: argparse.Namespace) -> None:
    """Do what hpcwrap can do, then say what is left to the administrator."""
    for done in setup_slurm.install(arguments.config):
        print(done)
    site = setup_slurm.load_site(arguments.config)
    texts = {file: setup_slurm.lines(site, file) for file in FILES}
    for file, text in texts.items():
        if text:
            print(f"\nadd to {site.place.path(file)}:\n\n{text}", end="")
    if any(texts.values()):
        print("\nthen restart slurmctld and slurmd, and see `hpcwrap setup slurm --check`")


def check(site: setup_slurm.Site) -> int:
    """Print what was looked at; EXIT_SITE when anything is missing or wrong."""
    findings = setup_slurm.check(site)
    order = {WELL: 2, NOTE: 1}
    findings.sort(key=lambda finding: order.get(finding.state, 0))
    print_table(("state", "where", "what", "detail"), [_cells(finding) for finding in findings])
    return 0 if is_well(findings) else EXIT_SITE


def _cells(finding: Finding) -> List[str]:
    return [finding.state, finding.file, finding.what, finding.detail]
