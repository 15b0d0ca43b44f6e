"""The helper's socket on a node: its units for systemd, and whether it answers."""

from __future__ import annotations

import os
import sys

from hpcwrap import helperclient, paths, record, run
from hpcwrap.errors import HpcwrapError
from hpcwrap.finding import MISSING, WELL, Finding
from hpcwrap.templates import make_engine
from hpcwrap.textfile import read_text

UNITS = ("hpcwrap-helper.socket", "hpcwrap-helper@.service")
SYSTEMD, DIRECTORY = "/run/systemd/system", "/etc/systemd/system"
"""The first is there where systemd runs (sd_booted(3))."""


def install() -> str:
    """Write the units and start the socket; says what was done, or what is to be done."""
    if not os.path.isdir(SYSTEMD):
        command = f"{python()} -I -c 'from hpcwrap.helper import main; raise SystemExit(main())'"
        return (
            "this host has no systemd: have something listen on "
            f"{paths.HELPER_SOCKET} (mode 0666) and start, for each connection as its stdin, "
            f"{command}"
        )
    changed = [name for name in UNITS if write_unit(name)]
    systemctl = run.need_program("systemctl", "systemd")
    run.output([systemctl, "daemon-reload"])
    run.output([systemctl, "enable", "--now", UNITS[0]])
    return f"wrote {', '.join(changed) or 'nothing'}; {UNITS[0]} listens"


def write_unit(name: str) -> bool:
    """Write one unit; False when it is as it should be already."""
    template = make_engine().get_template(f"{name}.j2")
    text = template.render(socket=paths.HELPER_SOCKET, python=python())
    return publish(os.path.join(DIRECTORY, name), text)


def python() -> str:
    """The Python that hpcwrap is installed in."""
    return sys.executable


def check() -> Finding:
    """See whether the helper answers."""
    try:
        helperclient.ask({"do": "sweep"})
    except HpcwrapError as error:
        return Finding(paths.HELPER_SOCKET, "helper", MISSING, error.sentence())
    return Finding(paths.HELPER_SOCKET, "helper", WELL, "it answers")


def publish(path: str, text: str) -> bool:
    """Write a file that all may read, by rename; False when it is as it should be already."""
    if read_text(path) == text:
        return False
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    record.publish(path, text.encode(), 0o644)
    return True
