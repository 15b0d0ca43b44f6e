"""LSF's files: where they are, what queues say, and what hpcwrap wants in them.

lsf.conf(5), lsb.queues(5), lsb.params(5); IBM keeps those of the batch system in a directory for
each cluster, volclava all together.
"""

from __future__ import annotations

import os
import re
from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.schedulers.lsf import INSIDE
from hpcwrap.textfile import read_text

CONF = "lsf.conf"
QUEUES = "lsb.queues"
PARAMS = "lsb.params"
FILES = (QUEUES, CONF)

STARTER = "/enter/lsf.sh"
PROLOG = "/prolog/lsf.sh"
EPILOG = "/epilog/lsf.sh"
METHOD = "hpcwrap"

ASSIGNMENT = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", re.ASCII)
BEGIN = re.compile(r"^[ \t]*Begin[ \t]+(\w+)", re.ASCII | re.IGNORECASE)
END = re.compile(r"^[ \t]*End[ \t]+(\w+)", re.ASCII | re.IGNORECASE)

Queue = Mapping[str, str]


class Place(NamedTuple):
    """Where LSF's files and programs are; empty where it could not be told.

    `files` is the directory of lsb.queues and lsb.params.
    """

    conf: str
    files: str
    servers: str
    commands: str

    def path(self, file: str) -> str:
        """Where one of the files is."""
        return self.conf if file == CONF else os.path.join(self.files, file)


def find_place(environ: Mapping[str, str]) -> Place:
    """Find the files by LSF_ENVDIR, as LSF's own commands do it."""
    conf = os.path.join(environ.get("LSF_ENVDIR") or "/etc", CONF)
    values = parse_conf(read_text(conf))
    return Place(
        conf=conf,
        files=find_batch_files(values.get("LSB_CONFDIR", os.path.dirname(conf))),
        servers=values.get("LSF_SERVERDIR", environ.get("LSF_SERVERDIR", "")),
        commands=values.get("LSF_BINDIR", environ.get("LSF_BINDIR", "")),
    )


def find_batch_files(directory: str) -> str:
    """The directory itself, or configdir of the one cluster that it has."""
    if os.path.exists(os.path.join(directory, QUEUES)):
        return directory
    try:
        clusters = sorted(os.listdir(directory))
    except OSError:
        return directory
    found = [os.path.join(directory, cluster, "configdir") for cluster in clusters]
    return next(filter(os.path.isdir, found), directory)


def parse_conf(text: str) -> Dict[str, str]:
    """Read NAME=VALUE lines; the last one counts.

    >>> parse_conf('LSB_ESUB_METHOD="a b"  # ours')
    {'LSB_ESUB_METHOD': 'a b'}
    """
    matches = map(ASSIGNMENT.match, logical_lines(text))
    return {match.group(1): match.group(2).strip('"') for match in matches if match}


def logical_lines(text: str) -> Iterator[str]:
    """Lines without comments, which begin anywhere, and with the lines that continue them."""
    for line in re.sub(r"\\[ \t]*\n", " ", text).split("\n"):
        yield line.partition("#")[0].rstrip()


def read_queues(place: Place) -> Dict[str, Queue]:
    """All queues of lsb.queues; none where it cannot be read."""
    return parse_queues(read_text(place.path(QUEUES)))


def parse_queues(text: str) -> Dict[str, Queue]:
    """Queue → its parameters."""
    queues: Dict[str, Queue] = {}
    for section, parameters in sections(text):
        if section == "queue" and "QUEUE_NAME" in parameters:
            queues[parameters["QUEUE_NAME"]] = parameters
    return queues


def sections(text: str) -> Iterator[Tuple[str, Dict[str, str]]]:
    """Begin NAME … End NAME: the name in small letters, and the assignments."""
    name = ""
    parameters: Dict[str, str] = {}
    for line in logical_lines(text):
        begin, assignment = BEGIN.match(line), ASSIGNMENT.match(line)
        if begin:
            name, parameters = begin.group(1).lower(), {}
        elif name and END.match(line):
            yield name, parameters
            name = ""
        elif name and assignment:
            parameters[assignment.group(1).upper()] = assignment.group(2)


def default_queue(place: Place) -> str:
    """The first of DEFAULT_QUEUE, which may be several; `default` where none is named."""
    for section, parameters in sections(read_text(place.path(PARAMS))):
        if section == "parameters" and parameters.get("DEFAULT_QUEUE"):
            return parameters["DEFAULT_QUEUE"].split()[0]
    return "default"


def starts_containers(queue: Queue) -> bool:
    """Whether a queue has our starter."""
    return STARTER in queue.get("JOB_STARTER", "")


# ---- checks ----


def check_conf(values: Mapping[str, str], place: Place) -> List[Finding]:
    """Look at lsf.conf."""
    if METHOD in values.get("LSB_ESUB_METHOD", "").split():
        return [Finding(CONF, "LSB_ESUB_METHOD", WELL, f"{METHOD} filters each submission")]
    detail = f"{place.conf}: add {METHOD}, or a misspelt environment runs without a container"
    return [Finding(CONF, "LSB_ESUB_METHOD", MISSING, detail)]


def check_queues(queues: Mapping[str, Queue], place: Place) -> List[Finding]:
    """Look at the queues: one at least must start containers, and none may run hooks as root."""
    if not queues:
        return [Finding(QUEUES, "queues", WRONG, f"cannot read {place.path(QUEUES)}")]
    found = [finding for name in queues for finding in check_queue(name, queues[name])]
    if any(map(starts_containers, queues.values())):
        return found
    detail = "no queue has it: see `hpcwrap setup lsf --lines lsb.queues`"
    return [*found, Finding(QUEUES, "JOB_STARTER", MISSING, detail)]


def check_queue(name: str, queue: Queue) -> List[Finding]:
    """Look at one queue."""
    what = f"queue {name}"
    found = []
    if queue.get("PRE_POST_EXEC_USER", "") == "root":
        detail = "PRE_POST_EXEC_USER=root runs programs as root with LD_PRELOAD of the job's user"
        found.append(Finding(QUEUES, what, WRONG, detail))
    if not starts_containers(queue):
        return [*found, Finding(QUEUES, what, NOTE, "starts no containers (JOB_STARTER)")]
    hooks = (("PRE_EXEC", PROLOG), ("POST_EXEC", EPILOG))
    missing = [key for key, path in hooks if path not in queue.get(key, "")]
    if "%USRCMD" not in queue["JOB_STARTER"]:
        found.append(Finding(QUEUES, what, WRONG, "JOB_STARTER has no %USRCMD: nothing would run"))
    if missing:
        detail = f"has no {' and no '.join(missing)} of hpcwrap: an unfit node fails its jobs"
        return [*found, Finding(QUEUES, what, MISSING, detail)]
    return found or [Finding(QUEUES, what, WELL, "starts containers")]


def check_links(expected: Sequence[str], place: Place) -> List[Finding]:
    """Look for an esub for each environment."""
    if not os.path.isdir(place.servers):
        detail = f"LSF_SERVERDIR of {place.conf} is no directory: {place.servers or 'not set'}"
        return [Finding("esub", "LSF_SERVERDIR", WRONG, detail)]
    missing = [
        name for name in expected if not os.path.exists(os.path.join(place.servers, f"esub.{name}"))
    ]
    if not missing:
        return [Finding("esub", "methods", WELL, f"{len(expected)} in {place.servers}")]
    detail = f"{', '.join(missing)}: run `hpcwrap setup lsf --table` on each submit host"
    return [Finding("esub", "methods", MISSING, detail)]


# ---- lines ----


def starter_line(starter: str) -> str:
    """JOB_STARTER: the job's file goes on where the starter has been, and else becomes it.

    Without `exec` the file would go on, on the host, where the starter cannot be run.
    """
    return f'test "${INSIDE}" = "$LSB_JOBID.$LSB_JOBINDEX" || exec {starter}; %USRCMD'
