"""hpcwrap sweep: end what jobs left on this node that no epilog came for."""

from __future__ import annotations

import argparse
import os

from hpcwrap import log, sweep
from hpcwrap.errors import UserError

EPILOG = """\
A job is left over when all processes that its life hangs on are gone: the scheduler's daemon was
killed, say, and its epilog never ran.  Jobs that run, begin or end are left alone, and so are
those of schedulers that see to it themselves (Slurm).  Prologs and `hpcwrap run` sweep first, so
that this is for cron, or for a look.
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
    for job_id, error in swept.failed.items():
        log.say(f"cannot end {job_id}: {error.sentence()}")
    return next((error.exit_code for error in swept.failed.values()), 0)
