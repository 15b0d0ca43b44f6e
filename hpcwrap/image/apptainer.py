"""The variables of an Apptainer image, which it keeps as shell scripts in /.singularity.d/env.

No shell reads them here: what Apptainer wrote for the variables of a Docker image has two forms
and is undone (insertEnv in its conveyorPacker_oci.go), and of a definition file's %environment
only plain assignments are understood, and only where it has nothing else.
"""

from __future__ import annotations

import os
import re
from typing import Dict, Optional, Tuple

from hpcwrap import run
from hpcwrap.image.worker import guarded, wide_pipe

ENVIRONMENT = ".singularity.d/env"
OF_DOCKER = "10-docker2singularity.sh"
OF_DEFINITION = "90-environment.sh"

MAX_SCRIPT = 1 << 20
_NULL = -3  # subprocess.DEVNULL

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_DEFAULT = re.compile(rf'export ({_NAME})="\$\{{\1:-"(.*)"\}}"\Z')
_QUOTED = re.compile(rf'export ({_NAME})="(.*)"\Z')
_PLAIN = re.compile(
    rf"(?:export )?({_NAME})=(?:\"([^\"$`\\!]*)\"|'([^'!]*)'|([A-Za-z0-9_@%+=:,./-]*))\Z"
)
_UNKNOWN = re.compile(rf"export ({_NAME})=[^;&|<>()`]*\Z")
"""An assignment that would need a shell: the variable is left out, the file is still read."""

_GO_ESCAPE = re.compile(r"\\(.)|[\"\\]")
_GO_CHARACTERS = {"\\": "\\", '"': '"', "n": "\n", "t": "\t", "r": "\r"}
_SHELL_ESCAPE = re.compile(r"\\([\\\"`$])|[\\\"`$]")


def variables_of(squashfs: str) -> Tuple[str, ...]:
    """The variables in an image's scripts as "K=V"; none for an image that is not Apptainer's."""
    of_docker = _cat(squashfs, OF_DOCKER)
    variables = parse_docker(of_docker)
    variables.update(parse_definition(_cat(squashfs, OF_DEFINITION)))
    return tuple(f"{name}={value}" for name, value in variables.items())


def parse_docker(script: str) -> Dict[str, str]:
    """The variables in the script that Apptainer writes for a Docker image's."""
    variables = {}
    for line in script.splitlines():
        found = _DEFAULT.match(line) or _QUOTED.match(line)
        value = _unescape(found[2]) if found else None
        if found and value is not None:
            variables[found[1]] = value
    return variables


def parse_definition(script: str) -> Dict[str, str]:
    """The plain assignments of a script that has nothing else, else nothing."""
    variables = {}
    for line in script.splitlines():
        text = line.strip()
        found = _PLAIN.match(text)
        if found:
            variables[found[1]] = next(x for x in found.groups()[1:] if x is not None)
        elif text and not text.startswith("#") and not _UNKNOWN.match(text):
            return {}
    return variables


def _unescape(text: str) -> Optional[str]:
    """Undo Go's %q around shell.Escape; None for what these two do not write."""
    quoted = _replace(_GO_ESCAPE, _GO_CHARACTERS, text)
    if quoted is None:
        return None
    return _replace(_SHELL_ESCAPE, {x: x for x in '\\"`$'}, quoted)


def _replace(pattern: re.Pattern[str], characters: Dict[str, str], text: str) -> Optional[str]:
    if any(found[1] not in characters for found in pattern.finditer(text)):
        return None
    return pattern.sub(lambda found: characters[found[1]], text)


def _cat(squashfs: str, name: str) -> str:
    program = run.need_program("rdsquashfs", "squashfs-tools-ng")
    reader, writer = wide_pipe()
    argv = guarded([program, "--cat", f"{ENVIRONMENT}/{name}", squashfs])
    child = run.spawn(argv, stdout=writer, stderr=_NULL)
    os.close(writer)
    with open(reader, "rb") as pipe:
        # A squashfs of a few bytes can hold a script of a terabyte.
        text = pipe.read(MAX_SCRIPT + 1)
    # One that is too long ends by the closed pipe, and counts as none; what is damaged shows when
    # the tree is read.
    return "" if child.wait() or len(text) > MAX_SCRIPT else text.decode(errors="replace")
