"""Subprocesses: argv lists, a built environment, the last words of what failed."""

from __future__ import annotations

import os
import subprocess
from typing import Sequence

from clusterlib.errors import ToolError
from clusterlib.layout import ROOT_PATH

# Proxies, because packages come over the network; nothing else of the caller's gets through.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

# The time of everything made here, 2023-06-10, the day of Debian 12: the same files give the same
# digests (https://reproducible-builds.org/specs/source-date-epoch/).
EPOCH = 1686355200


def run(argv: Sequence[str], *, cwd: str = "/", name: str = "") -> str:
    """Run a command to its end; its standard output.

    Raises ToolError with the command's last words when it cannot be run or fails; `name` says
    what to call it then, if not by the first word.
    """
    name = name or argv[0]
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ToolError(f"cannot find the program {name}: run tools/packages first") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ToolError(f"cannot run {name}: {words} (exit code {done.returncode})")
    return done.stdout


def environment() -> dict[str, str]:
    """The environment of every child."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        **passed,
        "PATH": ROOT_PATH,
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "SOURCE_DATE_EPOCH": str(EPOCH),
    }
