"""hpcwrap show: what a job asked for, what it got, how, and how long that took."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import re
import time
from contextlib import suppress
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

from hpcwrap import ended, paths, record
from hpcwrap.config import Settings, load_config
from hpcwrap.errors import HpcwrapError, UserError, printable
from hpcwrap.schedulers import slurm_status
from hpcwrap.verbs import jobname, timing
from hpcwrap.verbs.jobname import Named, listed

EPILOG = """\
request  which container was asked for, and by which option or default
record   all that is known: user, node, image, digest, times, warnings, how it ended
plan     the operations that made the container, and the changes to the job's variables
timing   where the time went

On a node for its jobs that run, and for those that ended last (setting `ended_jobs`); elsewhere,
all but the plan, where the site shares its log of jobs (setting `log`).  Users see their own jobs.
The job is named as its scheduler does it, 42, 42_7, 42.7, 12.server or 42[7]; `hpcwrap run` and
syslog name the directory below /run/hpcwrap/jobs.
"""

Document = Dict[str, Any]
PART = re.compile(r"[0-9]+[_+][0-9]+", re.ASCII)
"""An element of an array, or a part of a heterogeneous job, as Slurm's users call it."""

JOB = re.compile(rb'"job": "([^"]*)"')
KEY = frozenset(("node", "started", "user"))
REQUEST = ("job", "user", "node", "scheduler", "environment", "origin", "pin", "reference")
LONG = (*ended.DETAILS, "joins")
NOTHING: Tuple[object, ...] = ("", (), [], None)
TIMES = ("started", "ended")
"""In seconds since the epoch, as programs get them."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument("what", metavar="WHAT", choices=[*SHOWN], help=", ".join(SHOWN))
    parser.add_argument("job", metavar="JOB", help="the job's id")
    parser.add_argument("--json", action="store_true", help="print one JSON document a node")


def run(arguments: argparse.Namespace) -> int:
    """Find the job and print what was asked for."""
    show(arguments.what, arguments.job, load_config(arguments.config).settings, arguments.json)
    return 0


def show(what: str, job: str, settings: Settings, as_json: bool) -> None:
    """Print one thing of a job.  Raises UserError where there is nothing of it to be seen."""
    documents = look_up(job, settings)
    if not documents:
        raise not_found(job, settings)
    shown = SHOWN[what]
    parts = [shown.part(document) for document in documents]
    if not any(parts):
        nodes = ", ".join(str(document["node"]) for document in documents)
        raise UserError(f"cannot show the {what} of job {job}: it is not here", f"ask on {nodes}")
    if as_json:
        print(json.dumps(parts, indent=1))
    else:
        shown.display(parts)


# ---- finding ----


def look_up(word: str, settings: Settings) -> List[Document]:
    """All that is known of a job, a document for each node and run, the last one last."""
    found: Dict[object, Document] = {}
    named = name(word, settings)
    for document in (*logged(named, settings.log), *remembered(named), *running(named)):
        if is_ours(document):
            found[document["node"], document["started"]] = document
    return sorted(found.values(), key=lambda each: (each["started"], each["node"]))


def name(word: str, settings: Settings) -> Named:
    """Which directories a job may have."""
    return jobname.parse(word, parts_of(word, settings))


def parts_of(word: str, settings: Settings) -> List[str]:
    """Slurm's own numbers of an array's element or a heterogeneous job's part."""
    if PART.fullmatch(word):
        with suppress(HpcwrapError):
            return slurm_status.find_ids(word, settings)
    return []


def running(named: Named) -> Iterator[Document]:
    """What the prolog left on this node."""
    for job_id in listed(named, paths.JOBS):
        place = paths.JobPaths(job_id, paths.JOBS)
        with suppress(PermissionError):
            made = record.read_record(place)
            if made:
                yield {**made._asdict(), "joins": record.read_timing(place)}


def remembered(named: Named) -> Iterator[Document]:
    """What the epilog left on this node."""
    tail = len(".json")
    for file in listed(named, paths.ENDED, ".json"):
        with suppress(OSError, ValueError), open(ended.path_of(file[:-tail]), "rb") as text:
            yield json.load(text)


def logged(named: Named, path: str) -> Iterator[Document]:
    """The job's lines of the site's log; broken lines are left out."""
    with suppress(FileNotFoundError, PermissionError), open(path, "rb") as file:
        for line in file:
            # Cheaper than to decode every line of a log that may be years long.
            found = JOB.search(line)
            if found and named.pattern.fullmatch(found.group(1).decode("ascii", "replace")):
                with suppress(ValueError):
                    yield json.loads(line)


def is_ours(document: Document) -> bool:
    """Whether it is whole, and the caller may see the job: root all, others their own."""
    if not KEY.issubset(document):
        return False
    return os.geteuid() == 0 or document["user"] == pwd.getpwuid(os.getuid()).pw_name


def not_found(word: str, settings: Settings) -> UserError:
    """Why there is nothing: the prolog has told, or nobody knows."""
    for job_id in listed(name(word, settings), paths.JOBS):
        with suppress(OSError), open(paths.JobPaths(job_id, paths.JOBS).error, "rb") as file:
            sentence = file.read().decode("utf-8", "replace").strip()
            return UserError(f"job {word} has no container: {printable(sentence)}")
    return UserError(
        f"cannot find job {word} on this node or in {settings.log}",
        "one that runs is known on its nodes, see `hpcwrap status`; "
        "others had no container, are another user's, or are forgotten",
    )


# ---- what is shown of it ----


def request_part(document: Document) -> Document:
    """What was asked for; older records lack some of it."""
    return {key: document[key] for key in REQUEST if document.get(key)}


def record_part(document: Document) -> Document:
    """All but what the others show, and what says nothing."""
    return {
        key: value for key, value in document.items() if key not in LONG and value not in NOTHING
    }


def plan_part(document: Document) -> Document:
    """How the container was made; the log has none of it."""
    if "plan" not in document:
        return {}
    return {"operations": document["plan"], "variables": document["variables"]}


def timing_part(document: Document) -> Document:
    """The times, and what is printed above them."""
    return document


def display_pairs(parts: List[Document]) -> None:
    """Print a line for each value, and an empty one between nodes."""
    print("\n\n".join("\n".join(pair_lines(part)) for part in parts))


def pair_lines(part: Document) -> List[str]:
    """KEY: VALUE, aligned."""
    width = max(map(len, part), default=0) + 1
    return [f"{key + ':':{width}} {printable(plain(key, value))}" for key, value in part.items()]


def plain(key: str, value: object) -> str:
    """A value for people."""
    if key in TIMES and isinstance(value, (int, float)):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def display_plan(parts: List[Document]) -> None:
    """Print the steps as `hpcwrap plan` does."""
    for part in filter(None, parts):
        print("\n".join(map(printable, part["operations"])))
        print("\nvariables of the job:")
        print("\n".join(f"  {printable(line)}" for line in part["variables"]))


class Shown(NamedTuple):
    """A row of the table: which part of a document, and how people see the parts."""

    part: Callable[[Document], Document]
    display: Callable[[List[Document]], None]


SHOWN: Dict[str, Shown] = {
    "request": Shown(request_part, display_pairs),
    "record": Shown(record_part, display_pairs),
    "plan": Shown(plan_part, display_plan),
    "timing": Shown(timing_part, timing.display),
}
