"""Filter: Grid Engine's job submission verifier (jsv(1), jsv_script_interface(3)).

One process for as long as sge_qmaster runs, asked for every submission: it turns `-l container=`
into a variable of the job's, for no host has the attribute, and refuses what the node would.
It answers early and kindly; what holds is what the prolog asks again on the node.
"""

from __future__ import annotations

import gc
import os
import select
import sys
import time
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from hpcwrap import config, paths, submit
from hpcwrap.environment import allowed, refusal
from hpcwrap.errors import HpcwrapError, SiteError, UserError, printable
from hpcwrap.job import Job, User, find_user
from hpcwrap.request import NONE, Request, harmless, is_image, make_request
from hpcwrap.schedulers import default_container, gridengine
from hpcwrap.schedulers.gridengine import COMPLEX, OPTION, VARIABLE
from hpcwrap.schedulers.gridengine_table import Reader, Table

NO_COMMAND = "NONE"
"""What CMDNAME is for qlogin, qsh, and qrsh without a command."""

VERBS = ("START", "PARAM", "ENV", "BEGIN")

LINE_FEED = "cannot read the job: one of its values has a line of Grid Engine's words"

CONTEXT = "hpcwrap"
"""The job's context shows what it gets: `qstat -j`."""


class Submission(NamedTuple):
    """One job as it was submitted: its parameters, and its variables."""

    parameters: Dict[str, str]
    variables: Dict[str, str]

    def items(self, name: str) -> List[str]:
        """The items of a parameter that is a list."""
        return [item for item in self.parameters.get(name, "").split(",") if item]


def main(_scheduler: str) -> int:
    """Serve until the server hangs up or says so."""
    gc.enable()
    reader = Reader(paths.GRIDENGINE_TABLE)
    for submission in submissions(Lines(sys.stdin.fileno())):
        for line in answer(submission, reader):
            say(line)
    return 0


class Lines:
    """Lines from the server, and whether there is another already."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def __iter__(self) -> Iterator[str]:
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                yield line.decode("utf-8", "surrogateescape")
                continue
            more = os.read(self._fd, 1 << 16)
            if not more:
                return
            self._rest += more

    def pending(self) -> bool:
        """Whether something has come that was not looked at."""
        return bool(self._rest) or bool(select.select([self._fd], [], [], 0)[0])


def submissions(lines: Lines) -> Iterator[Submission]:
    """Speak the protocol up to BEGIN, again and again, as long as the server keeps to it.

    A line feed in a value makes a line of the user's.  An answer to a BEGIN among them would be
    taken for that to the next job, which is somebody else's: then this ends, and the server starts
    another filter.
    """
    submission: Optional[Submission] = None
    for line in lines:
        verb, _, rest = line.partition(" ")
        if verb == "QUIT" or (verb in VERBS and (verb == "START") is (submission is not None)):
            return
        if verb == "START":
            submission = Submission({}, {})
            say("SEND ENV")
            say("STARTED")
        elif submission is not None and verb != "BEGIN":
            note(submission, verb, rest)
        elif submission is not None:
            if lines.pending():
                # Without a word sge_qmaster would wait for ten seconds.
                say(f"RESULT STATE REJECT hpcwrap: {LINE_FEED}")
                return
            yield submission
            submission = None


def note(submission: Submission, verb: str, rest: str) -> None:
    """Keep what a line says of the job; one that is no word of the protocol goes on the last."""
    if verb == "PARAM":
        name, _, value = rest.partition(" ")
        submission.parameters[name] = value
    elif verb == "ENV":
        name, _, value = rest.partition(" ")[2].partition(" ")
        submission.variables[name] = value


def say(line: str) -> None:
    """Send a line, which the server waits for."""
    os.write(1, line.encode("utf-8", "surrogateescape") + b"\n")


def answer(submission: Submission, reader: Reader) -> List[str]:
    """What to say of a job: what is to be changed, and the verdict as the last."""
    try:
        changes = decide(submission, reader)
    except HpcwrapError as error:
        return [f"RESULT STATE REJECT hpcwrap: {error.sentence()}"]
    except Exception as error:  # noqa: BLE001
        # A bug of ours: what asks for a container is not let through without one.
        sys.excepthook(type(error), error, error.__traceback__)
        text = printable(f"{type(error).__name__}: {error}")
        return [f"RESULT STATE REJECT hpcwrap: the job filter failed: {text} (please report this)"]
    return [*changes, f"RESULT STATE {'CORRECT' if changes else 'ACCEPT'}"]


def decide(submission: Submission, reader: Reader) -> List[str]:
    """The changes of a job.  Raises HpcwrapError for one that is refused."""
    asked = find_request(submission)
    if asked is None:
        check_default(submission, reader)
        return []
    table = reader.read()
    check(asked, submission, table)
    text = pinned(asked, table)
    context = [item for item in submission.items("ac") if item.partition("=")[0] != CONTEXT]
    verb = "MOD" if VARIABLE in submission.variables else "ADD"
    return [
        f"ENV {verb} {VARIABLE} {text}",
        f"PARAM l_hard {','.join(others(submission))}".rstrip(),
        f"PARAM ac {','.join([*context, f'{CONTEXT}={text}'])}",
    ]


def find_request(submission: Submission) -> Optional[Request]:
    """What `-l container=` says, or the variable of a client's filter; None without any.

    The variable is not lost on the way: starters take it out of the environment of jobs, so that
    `qsub -V` in a job does not bring it along.  Raises UserError for a soft request.
    """
    if any(item.partition("=")[0] == COMPLEX for item in submission.items("l_soft")):
        raise UserError(f"cannot take {OPTION} as a soft request", "say it before -soft")
    for item in submission.items("l_hard"):
        name, _, value = item.partition("=")
        if name == COMPLEX:
            return make_request(harmless(value), OPTION)
    carried = submission.variables.get(VARIABLE)
    return make_request(harmless(carried), OPTION) if carried else None


def others(submission: Submission) -> List[str]:
    """The hard requests without ours."""
    return [item for item in submission.items("l_hard") if item.partition("=")[0] != COMPLEX]


def check(asked: Request, submission: Submission, table: Table) -> None:
    """Raise HpcwrapError for what the node would refuse."""
    name = asked.container or ""
    if name == NONE:
        return submit.refuse_none(asked, table.settings)
    if is_terminal(submission):
        raise gridengine.refuse_login()
    if is_image(name):
        submit.own_image(asked, table.settings)
        return None
    if name in table.broken:
        raise SiteError(
            f"cannot use the environment {name}: its description has a mistake",
            "an administrator has to see `hpcwrap config --check`",
        )
    if name not in table.environments:
        raise config.unknown_environment(name, sorted(table.environments))
    return check_user(name, submission, table)


def is_terminal(submission: Submission) -> bool:
    """Whether it is qsh, whose jobs have this name unless given one: then the node sees."""
    said = submission.parameters
    return (said.get("CMDNAME"), said.get("N")) == (NO_COMMAND, gridengine.TERMINAL)


def check_user(name: str, submission: Submission, table: Table) -> None:
    """Raise UserError for an environment that is not this user's."""
    known, user = table.environments[name], find_submitter(submission)
    if user and not allowed(known, user.name, submit.group_names(user)):
        raise refusal(known, user.name)


def find_submitter(submission: Submission) -> Optional[User]:
    """Whose job it is; None for somebody whom this host does not know, and the nodes may."""
    try:
        return find_user(submission.parameters.get("USER", "?"))
    except UserError:
        return None


def check_default(submission: Submission, reader: Reader) -> None:
    """Raise HpcwrapError where the default of a queue or project that is named will be refused.

    Which queue it is may be the scheduler's choice: then only the node can tell.
    """
    try:
        table = reader.read()
    except SiteError:
        return
    places = named_places(submission)
    job = Job("", "gridengine", User("", 0, 0, (), ""), "", "", places=places)
    default = default_container(table.settings, job)
    if default and default.container in table.environments:
        check(default, submission, table)


def named_places(submission: Submission) -> Tuple[Tuple[str, str], ...]:
    """The queue, where just one is named, and the project."""
    queues = {item.partition("@")[0] for item in submission.items("q_hard")}
    project = submission.parameters.get("P", "")
    places = [("queue", queue) for queue in queues if len(queues) == 1]
    return (*places, *([("project", project)] if project else []))


def pinned(asked: Request, table: Table) -> str:
    """NAME@DIGEST where the image that the environment has now is known; else what was asked."""
    name = asked.container or ""
    digest = asked.pin
    if not digest and (table.pins_until is None or time.time() < table.pins_until):
        digest = table.digests.get(name, "")
    return f"{name}@{digest}" if digest else name
