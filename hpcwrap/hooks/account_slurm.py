"""Slurm's accounting: a job's AdminComment, which sacct shows, gets the image that the job runs.

submit/slurm.lua writes NAME@DIGEST there at submission, where the digest is known then.  It is not
for a user's own image, nor for one that nobody had pulled before.  So the prolog of the job's first
node starts this and does not wait: slurm.conf(5) wants no command of Slurm's in a prolog, for
slurmctld may be busy, and then every job of the cluster would begin late.
"""

from __future__ import annotations

import os
import re
import sys

from hpcwrap import log, run, snapshot
from hpcwrap.errors import HpcwrapError

PATIENCE = 120.0
"""Seconds for an answer of slurmctld's: nobody waits for us."""

WORD = re.compile(r"(?:^|\s)hpcwrap=\S+")
LENGTH = 4096
"""Characters of a comment that squeue is to print."""


def main(_scheduler: str) -> int:
    """Note an image: the arguments are a job, NAME@DIGEST, and slurm.conf if it has a place.

    A process's edge: syslog gets to know what failed, and the job goes on.
    """
    job, label, configuration = sys.argv[1:4]
    try:
        commands = snapshot.load_settings().slurm_commands
        if commands:
            note(job, label, commands, configuration)
    except (HpcwrapError, OSError) as error:
        log.stage_line("account", job=job, node=os.uname().nodename, image=label, error=str(error))
        return 1
    return 0


def note(job: str, label: str, commands: str, configuration: str) -> None:
    """Put the image into the job's comment.  Raises HpcwrapError."""
    env = run.base_environment(**({"SLURM_CONF": configuration} if configuration else {}))
    words = [f"{commands}/squeue", "--noheader", f"--jobs={job}"]
    found = run.output([*words, f"--Format=admin_comment:{LENGTH}"], env=env, timeout=PATIENCE)
    before = found.decode("utf-8", "replace").strip()
    comment = replaced("" if before in ("(null)", "N/A") else before, label)
    if comment != before:
        update = ["update", f"JobId={job}", f"AdminComment={comment}"]
        run.output([f"{commands}/scontrol", *update], env=env, timeout=PATIENCE)


def replaced(comment: str, label: str) -> str:
    """A comment with our word for this image, in place of any other of ours.

    >>> replaced("of the site's hpcwrap=debian-12", "debian-12@sha256:00")
    "of the site's hpcwrap=debian-12@sha256:00"
    """
    return f"{WORD.sub('', comment).strip()} hpcwrap={label}".strip()
