"""hpcwrap sweep: end what jobs left on this node that no epilog came for."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from typing import List, Optional

from hpcwrap import config, log, paths, sweep
from hpcwrap.errors import UserError
from hpcwrap.verbs import leftover, leftovers_files

EPILOG = """\
A job is left over when all processes that its life hangs on are gone: the scheduler's daemon was
killed, say, and its epilog never ran.  Jobs that run, begin or end are left alone, and so are
those of schedulers that see to it themselves (Slurm).  Leases of this node's jobs that are gone
are given back, too: those of the jobs that a boot has ended.  Prologs and `hpcwrap run` sweep
first, and the first prolog after a boot starts this, so that it is for cron, or for a look.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--dry-run", action="store_true", help="say which jobs are left over, and end none"
    )


def run(arguments: argparse.Namespace) -> int:
    """Sweep, and say what was swept; the code is that of the first job that could not be ended."""
    if os.geteuid() != 0:
        raise UserError("cannot sweep this node: that needs root")
    if arguments.dry_run:
        print("".join(f"{job_id}\n" for job_id in sweep.left_over()), end="")
        return 0
    swept = sweep.sweep()
    for job_id in swept.ended:
        print(f"ended {job_id}")
    for lost in lost_leases(arguments.config):
        if lost.remove():
            print(f"gave back a lease: {lost.detail}")
    note_sweep()
    for job_id, error in swept.failed.items():
        log.say(f"cannot end {job_id}: {error.sentence()}")
    return next((error.exit_code for error in swept.failed.values()), 0)


def lost_leases(config_file: Optional[str]) -> List[leftover.Leftover]:
    """Leases of this node's jobs that are gone: a boot has ended them, or a kill their epilog.

    Raises SiteError for settings that cannot be read.
    """
    settings = config.load_config(config_file).settings
    return list(leftovers_files.leases(leftover.Node(settings)))


def note_sweep() -> None:
    """Spare the prologs to come a sweep after this boot."""
    with suppress(OSError):
        os.makedirs(os.path.dirname(paths.SWEPT), mode=0o755, exist_ok=True)
        os.close(os.open(paths.SWEPT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
