"""A node's timer for `hpcwrap sweep`, where no hook of the scheduler's comes by."""

from __future__ import annotations

import os
import sys
from typing import Dict

from hpcwrap import run
from hpcwrap.templates import make_engine
from hpcwrap.verbs import setup_helper

UNITS = ("hpcwrap-sweep.service", "hpcwrap-sweep.timer")
MINUTES = 5


def install() -> str:
    """Write the units and start the timer; says what was done, or what is to be done."""
    command = f"{sys.prefix}/bin/hpcwrap sweep"
    if not os.path.isdir(setup_helper.SYSTEMD):
        return f"this host has no systemd: have root's cron run `{command}` every {MINUTES} minutes"
    changed = [name for name, text in render(command).items() if write(name, text)]
    systemctl = run.need_program("systemctl", "systemd")
    run.output([systemctl, "daemon-reload"])
    run.output([systemctl, "enable", "--now", UNITS[1]])
    return f"wrote {', '.join(changed) or 'nothing'}; {UNITS[1]} runs"


def render(command: str) -> Dict[str, str]:
    """The text of each unit."""
    engine = make_engine()
    return {
        name: engine.get_template(f"{name}.j2").render(command=command, minutes=MINUTES)
        for name in UNITS
    }


def write(name: str, text: str) -> bool:
    """Write one unit; False when it is as it should be already."""
    return setup_helper.publish(os.path.join(setup_helper.DIRECTORY, name), text)
