"""What a job of LSF's does for itself on each of its hosts, as its user: it asks the helper.

`prepare` is PRE_EXEC, `start` JOB_STARTER, `release` POST_EXEC; `task` and `tidy` are what lsrun or
blaunch starts on later hosts.  docs/decisions/0120 says why nothing here is root's, and 0121 how
the job's file is started.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence

from hpcwrap import helperclient, log, paths, run
from hpcwrap.enter import FAILED
from hpcwrap.errors import HpcwrapError, NodeError, SiteError
from hpcwrap.schedulers import lsf
from hpcwrap.schedulers.lsf_files import find_place, parse_conf
from hpcwrap.textfile import read_text

AGAIN = 1
"""PRE_EXEC's code for another try, elsewhere if LSF has another host."""

PATIENCE = 20
"""Seconds that bjobs may take."""

GENERATIONS = 4
"""How far above us the process may be that LSF made for the job."""


def main(part: str) -> int:
    """Run one part: a process's edge; the exit code."""
    try:
        return PARTS[part](own_environment())
    except HpcwrapError as error:
        log.say(error.sentence())
    except Exception as error:  # noqa: BLE001
        # A bug of ours: the job must not run on the host, and not be tried again for ever.
        sys.excepthook(type(error), error, error.__traceback__)
    return FAILED


def own_environment() -> Dict[str, str]:
    """Our environment as we were given it: Python adds LC_CTYPE to its own (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0"))
        return {name: value for name, sign, value in pairs if sign}


# ---- the parts ----


def prepare(environ: Mapping[str, str]) -> int:
    """PRE_EXEC: have the container made before the job counts as started.

    Its stderr is /dev/null.  So only an unfit node is an error for LSF; any other, which ends this
    with FAILED, is the starter's to tell, in the job's own output.
    """
    try:
        ask("prepare", environ)
    except NodeError as error:
        log.stage_line("prolog", job=lsf.job_name(environ), error=error.sentence())
        return AGAIN
    return 0


def start(environ: Mapping[str, str]) -> int:
    """JOB_STARTER: become the job's file, in its container or, where it has none, as it is.

    The file is run a second time from its start; its first line with a command sees INSIDE and goes
    on.
    """
    again = {**environ, lsf.INSIDE: lsf.job_name(environ)}
    script = ["/bin/sh", job_file(environ)]
    directory = ask("prepare", environ)["directory"]
    become(script if directory is None else into(directory, script), again)


def task(environ: Mapping[str, str]) -> int:
    """A command on a later host: run it in this host's container."""
    command = ["/bin/sh", "-c", sys.argv[1]]
    directory = ask("prepare", environ)["directory"]
    become(command if directory is None else into(directory, command), environ)


def release(environ: Mapping[str, str]) -> int:
    """POST_EXEC: drop the container of this host; a sweep finds those of the others."""
    ask("release", environ)
    return 0


def explain(environ: Mapping[str, str]) -> int:
    """After the job's last command: drop the container, and tell the limits that it met."""
    for sentence in ask("release", environ).get("said", ()):
        log.say(sentence)
    return 0


def tidy(_environ: Mapping[str, str]) -> int:
    """After a command on a later host: drop its container, unless others of the job use it."""
    helperclient.ask({"do": "sweep"})
    return 0


PARTS: Dict[str, Callable[[Mapping[str, str]], int]] = {
    "prepare": prepare,
    "start": start,
    "task": task,
    "tidy": tidy,
    "release": release,
    "explain": explain,
}


# ---- the steps ----


def ask(what: str, environ: Mapping[str, str]) -> Dict[str, Any]:
    """Ask the helper about the job; its answer."""
    message: Dict[str, Any] = {"do": what, "scheduler": "lsf", "variables": spoken(environ)}
    if what == "prepare":
        above = generations(environ.get("LS_JOBPID", ""))
        message.update(mounts=mounts(), limits=limits(environ), above=above)
    return helperclient.ask(message)


def spoken(environ: Mapping[str, str]) -> Dict[str, str]:
    """What the helper is told; a text of several lines cannot be meant.

    But a request never counts as none: it is to be refused.
    """
    names = {*lsf.WORDS, *lsf.CALLER_VARIABLES}
    told = {name: environ[name] for name in sorted(names) if is_line(environ.get(name))}
    if lsf.VARIABLE in environ:
        told[lsf.VARIABLE] = environ[lsf.VARIABLE].replace("\n", "?")
    return told


def is_line(text: Optional[str]) -> bool:
    """Whether a variable is there, on one line."""
    return text is not None and "\n" not in text


def mounts() -> List[str]:
    """Where LSF puts the job's file, sbatchd(8): in the home directory, or where that is not there.

    The first is made as LSF would make it a moment later: what is not there cannot be mounted.
    The same list on all hosts and at all times: for another one the helper would begin anew.
    """
    import pwd

    user = pwd.getpwuid(os.getuid())
    places = (f"{user.pw_dir}/.lsbatch", f"/tmp/.lsbtmp{user.pw_uid}")  # noqa: S108
    with suppress(OSError):
        os.makedirs(places[0], mode=0o700, exist_ok=True)
    return [f"{place} {place} none bind,rw,nofail" for place in places if " " not in place]


def limits(environ: Mapping[str, str]) -> Dict[str, int]:
    """The job's memory limit, where LSF is to hold the whole job to it but has no cgroup for it.

    sbatchd looks now and then and kills; the kernel has to be told by us (lsf.conf(5)).
    """
    place = find_place(environ)
    values = parse_conf(read_text(place.conf))
    if "/lsf/" in read_text("/proc/self/cgroup") or not is_on(values, "LSB_JOB_MEMLIMIT"):
        return {}
    job, _, index = lsf.job_name(environ).partition(".")
    bjobs = [f"{place.commands}/bjobs", "-l", job if index == "0" else f"{job}[{index}]"]
    try:
        text = run.output(bjobs, env=environ, timeout=PATIENCE).decode(errors="replace")
    except HpcwrapError:
        return {}
    memory = lsf.memory_limit(text)
    return {"memory": memory} if memory else {}


def is_on(values: Mapping[str, str], name: str) -> bool:
    """Whether lsf.conf says yes."""
    return values.get(name, "").lower() in ("y", "yes")


def generations(process: str) -> int:
    """How far above us a process is; 0 where it is none of our ancestors."""
    ours = os.getpid()
    for above in range(GENERATIONS):
        if str(ours) == process:
            return above
        ours = parent_of(ours)
    return 0


def parent_of(process: int) -> int:
    """A process's parent, 0 where there is none (proc(5), stat)."""
    words = read_text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return int(words[1]) if len(words) > 1 else 0


def job_file(environ: Mapping[str, str]) -> str:
    """The script that LSF made of the job.  Raises SiteError."""
    path = environ.get("LSB_JOBFILENAME", "")
    if not os.path.isabs(path):
        raise SiteError(
            f"cannot start the job: LSB_JOBFILENAME is not a path: {path!r}",
            "JOB_STARTER of lsb.queues must be as `hpcwrap setup lsf --lines lsb.queues` has it",
        )
    return path


def into(directory: str, command: Sequence[str]) -> List[str]:
    """The command line that joins a container."""
    return [paths.enter_program(), directory, "--", *command]


def become(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become a command, with no signal ignored that Python ignores."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        run.execute(argv, environ)
    except OSError as error:
        raise SiteError(f"cannot start {argv[0]}: {error.strerror}") from error
