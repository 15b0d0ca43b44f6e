"""A session in a job: condor_ssh_to_job, condor_submit -interactive.

The starter runs sshd on the host, as the job's user.  Whatever the user asks it for, it runs
enter/htcondor.sh, which comes here with the job's variables (docs/decisions/0105).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import List, Mapping

from hpcwrap import helperclient, paths, run
from hpcwrap.errors import UserError
from hpcwrap.hooks.enter_htcondor import (
    IMAGE_ATTRIBUTES,
    execute_on_host,
    home_of_user,
    job_variables,
    of_job,
    read_ad,
)
from hpcwrap.request import NONE
from hpcwrap.schedulers import htcondor
from hpcwrap.textfile import read_text

HOST_SETUP = os.path.join(htcondor.LIBEXEC, "condor_ssh_to_job_shell_setup")
"""What HTCondor itself has sshd run."""

MARK = ".docker_sock"
"""What the starter leaves in the scratch directory of a job that came by its SINGULARITY knob."""

PAUSE_S, LOOKS = 0.5, 60
"""How often, and how many times, to look for a container that nobody has asked for yet."""

SHELL = """\
[ -x "$1" ] || set -- /bin/sh "$2"
if [ "$2" ]; then exec "$1" -c "$2"; fi
exec "$1" -l"""
"""The user's own shell, where the image has it, for a command or as a login."""


def open_session(variables_file: str, environ: Mapping[str, str]) -> int:
    """Become the user's command, or shell, in the container of the job with these variables.

    Raises UserError where the job's container is not there: nothing of it runs on the host.
    """
    ad = read_ad(environ.get("_CONDOR_JOB_AD", ""))
    if "clusterid" not in ad:
        raise UserError("cannot open a session: the job's ad is not there")
    asked = next((ad[name] for name in IMAGE_ATTRIBUTES if ad.get(name)), "")
    if asked in ("", NONE) and not came_by_knob(environ):
        variables = job_variables(environ, environ.get("HOME", ""))
        return execute_on_host([HOST_SETUP, variables_file], variables)
    variables = job_variables(environ, home(environ))
    change_directory(environ)
    command = ["/bin/sh", "-c", SHELL, "sh", *asked_for(environ)]
    if asked == NONE:
        return execute_on_host(command, variables)
    container = find_container(environ)
    end_placeholder(ad, environ)
    return run.execute([paths.enter_program(), *container, "--", *command], variables)


def came_by_knob(environ: Mapping[str, str]) -> bool:
    """Whether the starter ran the job by us; with a default of the pool all of them."""
    return os.path.exists(os.path.join(environ.get("_CONDOR_SCRATCH_DIR", ""), MARK))


def asked_for(environ: Mapping[str, str]) -> List[str]:
    """The shell, and the command that the user gave, empty for none.

    _CONDOR_SHELL is the user's choice on the access point (condor_ssh_to_job -shells).
    """
    shell = environ.get("_CONDOR_SHELL") or environ.get("SHELL", "")
    return [shell, environ.get("SSH_ORIGINAL_COMMAND", "")]


def home(environ: Mapping[str, str]) -> str:
    """The scratch directory with file transfer, as in the job; else the user's."""
    begins = environ.get("_CONDOR_JOB_IWD", "")
    return begins if begins == environ.get("_CONDOR_SCRATCH_DIR") else home_of_user()


def change_directory(environ: Mapping[str, str]) -> None:
    """Go where the job began, else to its scratch directory; hpcwrap-enter stays there."""
    for name in ("_CONDOR_JOB_IWD", "_CONDOR_SCRATCH_DIR"):
        with suppress(OSError):
            os.chdir(environ.get(name, ""))
            return


def find_container(environ: Mapping[str, str]) -> List[str]:
    """Words for hpcwrap-enter; we are held to the job's limits then.

    The session of an interactive job comes while its container is being made: the helper answers
    when that is done.  Only the moment before the job asks for it is waited for here.
    """
    for _ in range(LOOKS):
        found = helperclient.ask({"do": "find", **of_job(environ)})
        if found["directory"] is not None:
            (namespace,) = found[helperclient.DESCRIPTORS]
            return ["--mount-namespace", str(namespace), found["directory"]]
        if not any(os.path.exists(f"/proc/{process}") for process in processes(environ)):
            break
        time.sleep(PAUSE_S)
    raise UserError(
        "cannot open a session: the job's container is not there",
        "it could not be made, or has ended; the job's stderr says why",
    )


def processes(environ: Mapping[str, str]) -> List[int]:
    """The job's own process, first, and the sshds of its other sessions."""
    return [int(word) for word in environ.get("_CONDOR_JOB_PIDS", "").split() if word.isdigit()]


def end_placeholder(ad: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """End what holds the place of an interactive job, as HTCondor does where it has no container.

    The job then lasts as long as its sessions do.
    """
    for process in processes(environ) if ad.get("interactivejob", "").lower() == "true" else ():
        if not read_text(f"/proc/{process}/comm").startswith("sshd"):
            with suppress(OSError):
                os.kill(process, signal.SIGTERM)
