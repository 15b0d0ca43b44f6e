"""PBS's `pbs` module as a hook sees it, made from what a real server or MoM sent.

A recording is one event: the attributes of the job, of the vnodes and of the event, as text.  What
the hook does to them, and how it ends, can be looked at afterwards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, NoReturn, Optional

REPOSITORY = Path(__file__).parents[2]
RECORDINGS = Path(__file__).parent / "recordings"
EVENTS = (
    *("QUEUEJOB", "MODIFYJOB", "EXECJOB_BEGIN", "EXECJOB_LAUNCH", "EXECJOB_END", "EXECJOB_ABORT"),
    *("EXECHOST_STARTUP", "EXECHOST_PERIODIC"),
)
LISTS = ("Resource_List", "Variable_List")


class Resources(Dict[str, Any]):
    """pbs_resource and pbs.Variable_List: what is not there is None."""

    def __missing__(self, _key: str) -> None:
        return None


class Thing:
    """A job or a vnode: attributes that are not there are None."""

    def __init__(self, attributes: Dict[str, Any]) -> None:
        found = {name: attributes.get(name, {}) for name in LISTS}
        lists = {name: Resources(found[name]) for name in LISTS if found[name] is not None}
        self.__dict__.update({**attributes, **lists})
        self.rerun_called = False

    def __getattr__(self, name: str) -> None:
        return None

    def rerun(self) -> None:
        """job.rerun()."""
        self.rerun_called = True


class Event:
    """pbs.event(); `rejected` holds the message of a rejection."""

    def __init__(self, recording: Dict[str, Any]) -> None:
        self.type = recording["event"]
        self.requestor = recording["requestor"]
        self.job = Thing(recording.get("job", {}))
        self.job_o = Thing(recording.get("job_o", {}))
        self.progname = recording.get("progname")
        self.argv: List[str] = recording.get("argv", [])
        self.env: Dict[str, str] = recording.get("env") or {}
        self.vnode_list = {name: Thing(each) for name, each in recording.get("vnodes", {}).items()}
        self.rejected: Optional[str] = None

    def accept(self) -> NoReturn:
        """End the hook."""
        raise SystemExit(0)

    def reject(self, message: str = "") -> NoReturn:
        """End the hook, and the event with it."""
        self.rejected = message
        raise SystemExit(255)


def load(name: str) -> Dict[str, Any]:
    """A recording."""
    found: Dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
    return found


def replay(recording: Dict[str, Any], stage: str, config: Path) -> Event:
    """Run the hook of a stage for an event; the event, with what the hook has made of it.

    The jobs' directory is `jobs`, beside the configuration.
    """
    event = Event(recording)
    source = REPOSITORY / stage / "pbs.py"
    text = source.read_text().replace("/run/hpcwrap/jobs", str(config.parent / "jobs"))
    before = sys.modules.get("pbs")
    sys.modules["pbs"] = make_module(event, recording, config)
    try:
        exec(compile(text, source, "exec"), {"__name__": "hook"})
    except SystemExit:
        pass
    finally:
        sys.modules.pop("pbs")
        if before:
            sys.modules["pbs"] = before
    return event


def make_module(event: Event, recording: Dict[str, Any], config: Path) -> ModuleType:
    """The part of the module that our hooks use."""
    module: Any = ModuleType("pbs")
    for name in EVENTS:
        setattr(module, name, name.lower())
    module.event = lambda: event
    module.hook_config_filename = str(config)
    module.get_local_nodename = lambda: recording["node"]
    module.pbs_conf = {"PBS_HOME": str(config.parent)}
    module.LOG_ERROR = 1
    module.ND_OFFLINE = "offline"
    module.logmsg = lambda _level, _text: None
    return module  # type: ignore[no-any-return]
