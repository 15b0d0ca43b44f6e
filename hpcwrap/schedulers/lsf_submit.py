"""esub: what bsub writes into LSB_SUB_PARM_FILE, and what an esub may change of it.

The file looks like a shell's, and IBM's manual sources it; the user's command line is in it as it
was typed, so that sourcing runs pieces of it.  Here it is read, never run.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, NamedTuple, Tuple

from hpcwrap.errors import UserError
from hpcwrap.hints import closest

RAW = "LSB_SUB_COMMAND_LINE"
"""The one value that is written without any escape, on as many lines as the command has."""

VALUE = r'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.:+-]*'
LINE = re.compile(rf"^(LS[BF]_\w+)=({VALUE})[ \t]*$", re.ASCII)
PARAMETER = re.compile(rf"(LS[BF]_\w+)=({VALUE})[ \t]*(?:\n|\Z)", re.ASCII | re.DOTALL)
ARGUMENTS = re.compile(r"container\(([^()\s]+)\)", re.ASCII)
WORD = re.compile(r"container\([^()]*\)|[^\s()]+\([^()]*\)|\S+")


class Submission(NamedTuple):
    """What the filter has to know of a submission.

    `methods` are the words of `bsub -a`.  `modifies` is true for bmod, which cannot change the
    environment of a job.  `login_shell` is true for `bsub -L`, which does not pass it on.
    """

    methods: Tuple[str, ...]
    queue: str
    application: str
    modifies: bool
    login_shell: bool


def read_submission(text: str) -> Submission:
    """Read the parameter file's text."""
    found = parse_parameters(text)
    return Submission(
        methods=tuple(WORD.findall(found.get("LSB_SUB_ADDITIONAL", ""))),
        queue=found.get("LSB_SUB_QUEUE", ""),
        application=found.get("LSB_SUB3_APP", ""),
        modifies=found.get("LSB_SUB_MODIFY") == "Y",
        login_shell=bool(found.get("LSB_SUB_LOGIN_SHELL")),
    )


def parse_parameters(text: str) -> Dict[str, str]:
    r"""Read NAME="text", NAME=Y and NAME=number lines; what is no such line is passed over.

    A command line can hold lines that look like parameters.  So what stands before it is read from
    the top, what follows it from the end upwards, and LSF's own lines come before the user's.

    >>> parse_parameters('LSB_SUB_QUEUE="a\\"b"\nLSB_SUB_NUM_PROCESSORS=4\n')
    {'LSB_SUB_QUEUE': 'a"b', 'LSB_SUB_NUM_PROCESSORS': '4'}
    """
    found = read_down(text)
    for name, value in read_up(text):
        found.setdefault(name, value)
    return found


def read_down(text: str) -> Dict[str, str]:
    """The parameters before the command line, or before the first line that is none."""
    found: Dict[str, str] = {}
    at = 0
    while not text.startswith(RAW + "=", at):
        match = PARAMETER.match(text, at)
        if match is None:
            break
        found.setdefault(match.group(1), unquote(match.group(2)))
        at = match.end()
    return found


def read_up(text: str) -> List[Tuple[str, str]]:
    """The parameters after the command line, the last first."""
    found = []
    for line in reversed(text.rstrip("\n").split("\n")):
        match = LINE.match(line)
        if match is None or match.group(1) == RAW:
            break
        found.append((match.group(1), unquote(match.group(2))))
    return found


def unquote(value: str) -> str:
    """A value without its quotes; LSF writes a quote in it as \\"."""
    return value[1:-1].replace('\\"', '"') if value.startswith('"') else value


def find_container(methods: Tuple[str, ...], known: Mapping[str, bool]) -> str:
    """The container among the words of -a; empty for none.

    `known` has the words that are somebody's: true for environments, false for other methods.
    Raises UserError for a word that nobody knows, and for two containers.
    """
    asked = []
    for word in methods:
        match = ARGUMENTS.fullmatch(word)
        if match:
            asked.append(match.group(1))
        elif known.get(word, False):
            asked.append(word)
        elif word not in known:
            environments = [name for name, ours in known.items() if ours]
            raise UserError(
                f"cannot use -a {word}: there is no environment and no esub of that name",
                closest(word, environments, otherwise="see `hpcwrap env list`"),
            )
    if len(set(asked)) > 1:
        raise UserError(f"cannot use two containers in one job: {' and '.join(asked)}")
    return asked[0] if asked else ""
