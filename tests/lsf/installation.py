"""An installation of hpcwrap as LSF's stage files see it, that any user can run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Mapping, NamedTuple

REPOSITORY = Path(__file__).parents[2]
RECORDINGS = Path(__file__).parent / "recordings"
STAGES = ("submit", "prolog", "enter", "epilog")

PYTHON = """\
#!/bin/sh
# python3 -I -c CODE ..., with the package of this installation.
code=$3
shift 3
exec /usr/bin/python3 -I -c "import sys; sys.path.insert(0, '{library}'); $code" "$@"
"""


class Ran(NamedTuple):
    """A command's end."""

    code: int
    stdout: str
    stderr: str


class Installation(NamedTuple):
    """PREFIX, with all that is not compiled."""

    prefix: Path

    def stage(self, stage: str, file: str = "lsf.sh") -> Path:
        """A stage's file."""
        return self.prefix / "share" / "hpcwrap" / stage / file


def install(prefix: Path) -> Installation:
    """Copy the package and the stage files, for all to read."""
    library = prefix / "lib"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "hpcwrap", library / "hpcwrap", ignore=ignore)
    for stage in STAGES:
        shutil.copytree(REPOSITORY / stage, prefix / "share" / "hpcwrap" / stage, ignore=ignore)
    python = prefix / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON.format(library=library))
    python.chmod(0o755)
    return Installation(prefix)


def run(*command: str, environ: Mapping[str, str], stdin: str = "") -> Ran:
    """Run a command with this environment and no other."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environ},
        timeout=60,
    )
    print(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}[{done.returncode}]")
    return Ran(done.returncode, done.stdout, done.stderr)


def site(directory: Path) -> Dict[str, str]:
    """Settings with two environments, and LSF's files; the variables that lead there."""
    environments = directory / "environments.d"
    environments.mkdir(parents=True)
    (directory / "hpcwrap.yaml").write_text("")
    for name, users in (("debian-12", ""), ("busybox-1", ""), ("others", "users: [nobody-here]\n")):
        (environments / f"{name}.yaml").write_text(f"image: registry:5000/{name}:latest\n{users}")
    (directory / "lsf.conf").write_text(f"LSB_CONFDIR={directory}\nLSF_SERVERDIR={directory}\n")
    (directory / "lsb.params").write_text(
        "Begin Parameters\nDEFAULT_QUEUE = normal other\nEnd Parameters\n"
    )
    (directory / "lsb.queues").write_text(
        "Begin Queue\nQUEUE_NAME = normal\nJOB_STARTER = exec /x/enter/lsf.sh; %USRCMD\nEnd Queue\n"
        "Begin Queue\nQUEUE_NAME = containers\nJOB_STARTER = /x/enter/lsf.sh %USRCMD\nEnd Queue\n"
        "Begin Queue\nQUEUE_NAME = bare\nEnd Queue\n"
    )
    return {
        "HPCWRAP_CONFIG": str(directory / "hpcwrap.yaml"),
        "LSF_ENVDIR": str(directory),
        "LSF_SERVERDIR": str(directory),
        "LSB_SUB_ABORT_VALUE": "97",
        "HOME": os.environ.get("HOME", "/"),
    }
