"""esub: LSF's filter at submission, run by bsub as the user who submits.

It answers early and kindly; what holds is what the helper asks again on the node.
"""

from __future__ import annotations

import os
import sys
from typing import Dict, Mapping

from hpcwrap import config, environmentfile, log, submit
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.job import Job, find_user
from hpcwrap.request import NONE, make_request, split_pin
from hpcwrap.schedulers import lsf, lsf_files, lsf_submit
from hpcwrap.schedulers.lsf_submit import Submission
from hpcwrap.textfile import read_text

ABORT = 97
"""LSB_SUB_ABORT_VALUE where bsub does not say; with any other code the job is submitted."""

OURS = ("hpcwrap", "container")
"""Methods of ours that are no environment: the mandatory one, and the one with an argument."""


def main(_scheduler: str) -> int:
    """Run as an esub: a process's edge; anything but 0 keeps the job from being submitted."""
    try:
        esub(os.environ)
    except HpcwrapError as error:
        log.say(error.sentence())
        return abort_value(os.environ)
    except Exception as error:  # noqa: BLE001
        # A bug of ours: without this code bsub would submit the job as if nothing were amiss.
        sys.excepthook(type(error), error, error.__traceback__)
        return abort_value(os.environ)
    return 0


def esub(environ: Mapping[str, str]) -> None:
    """Check what was asked for, and send it along with the job.  Raises HpcwrapError."""
    submission = lsf_submit.read_submission(read_text(environ.get("LSB_SUB_PARM_FILE", "")))
    asked = lsf_submit.find_container(submission.methods, known_methods(submission, environ))
    if asked:
        refuse_lost(submission, asked)
    container = asked or environ.get(lsf.VARIABLE, "")
    if not container:
        return
    origin = f"-a {asked}" if asked else f"${lsf.VARIABLE}"
    check(container, origin, submission)
    check_queue(submission, environ)
    if asked:
        pass_on(asked, environ)


def abort_value(environ: Mapping[str, str]) -> int:
    """The code that keeps a job from being submitted."""
    text = environ.get("LSB_SUB_ABORT_VALUE", "")
    return int(text) if text.isdigit() and 0 < int(text) < 256 else ABORT


def known_methods(submission: Submission, environ: Mapping[str, str]) -> Dict[str, bool]:
    """Which words of -a are environments, and which are esubs of somebody else."""
    directory = config.environments_directory(config.settings_file())
    environments = [*environmentfile.environment_names(directory), NONE]
    servers = environ.get("LSF_SERVERDIR", "")
    known = dict.fromkeys(environments, True)
    for word in submission.methods:
        if split_pin(word)[0] in environments:
            known[word] = True
        elif word in OURS or os.path.exists(os.path.join(servers, f"esub.{word}")):
            known[word] = False
    return known


def refuse_lost(submission: Submission, asked: str) -> None:
    """Refuse where the request would not reach the job.  Raises UserError."""
    if submission.modifies:
        raise UserError(
            f"cannot change the container of a job to {asked}: bmod cannot change its environment",
            "submit it again",
        )
    if submission.login_shell:
        raise UserError(
            f"cannot use -L with -a {asked}: a job with a login shell loses its environment",
            "leave -L out",
        )


def check(container: str, origin: str, submission: Submission) -> None:
    """Ask for the container as the node will.  Raises HpcwrapError."""
    job = Job(
        id="lsf-0",
        scheduler="lsf",
        user=find_user(str(os.getuid())),
        workdir="",
        node="",
        places=(("queue", submission.queue), ("application", submission.application)),
    )
    submit.choose(job, make_request(container, origin), config.settings_file())


def check_queue(submission: Submission, environ: Mapping[str, str]) -> None:
    """See that the queue starts containers, where its file can be read.

    Raises SiteError: without JOB_STARTER the job would run on the host.
    """
    place = lsf_files.find_place(environ)
    queues = lsf_files.read_queues(place)
    name = submission.queue or lsf_files.default_queue(place)
    if name in queues and not lsf_files.starts_containers(queues[name]):
        raise SiteError(
            f"cannot start containers from the queue {name}: lsb.queues has no JOB_STARTER for it",
            "use another queue, or ask the administrator for `hpcwrap setup lsf`",
        )


def pass_on(container: str, environ: Mapping[str, str]) -> None:
    """Put the request into the job's environment.  Raises SiteError.

    A value ends at its first quote, whatever stands before it; the letters of a name and of an
    image (`request.is_plain`) have none.
    """
    path = environ.get("LSB_SUB_MODIFY_ENVFILE", "")
    try:
        with open(path, "a", encoding="ascii") as file:
            file.write(f'{lsf.VARIABLE}="{container}"\n')
    except OSError as error:
        raise SiteError(f"cannot write {path or 'LSB_SUB_MODIFY_ENVFILE'}: {error}") from error
