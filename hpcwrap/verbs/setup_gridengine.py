"""What `hpcwrap setup gridengine` does to this host, one function a step; all may be run again."""

from __future__ import annotations

import os
import time
from typing import Dict, Iterator, List, Optional

from hpcwrap import config, paths, run
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.record import publish
from hpcwrap.schedulers import gridengine_status, gridengine_table, states
from hpcwrap.schedulers.gridengine import COMPLEX
from hpcwrap.textfile import read_text
from hpcwrap.verbs import setup_host, tables

FILES = ("conf", "complex")
"""The attribute last: jobs that ask for it wait for ever where the filter does not take it out."""

AFTERWARDS = "wait some seconds until the nodes have heard of it"
COMMANDS = {"complex": "qconf -mc", "conf": "qconf -mconf"}

ATTRIBUTE = f"{COMPLEX}  ctr  RESTRING  ==  YES  NO  NONE  0"
"""complex(5): name, shortcut, type, relop, requestable, consumable, default, urgency."""

BUILTIN = ("rsh_command", "rsh_daemon", "rlogin_command", "rlogin_daemon")
"""Ways of qrsh that start a command by the shepherd; with others no starter is asked."""

HINT = "install it, or have PATH and SGE_ROOT say where it is (settings.sh)"

QCONF_TIMEOUT = 20
"""Seconds for sge_qmaster to answer."""


def is_master() -> bool:
    """True on sge_qmaster's host: only it needs the table.

    All hosts may have the program, where they share $SGE_ROOT; a cell says who is the master.
    """
    name = gridengine_status.read_master()
    return name.partition(".")[0] == os.uname().nodename.partition(".")[0]


def hooks() -> Dict[str, str]:
    """What the global configuration has to say."""
    return {
        "shepherd_cmd": paths.data("prolog", "gridengine.sh"),
        "jsv_url": f"script:{paths.data('submit', 'gridengine.sh')}",
    }


def install(config_file: Optional[str]) -> Iterator[str]:
    """Build the programs, install the settings, make the store, write the table.

    Yields a line for each step.  Raises HpcwrapError.
    """
    setup_host.need_root()
    need_qconf()
    yield from setup_host.prepare(config_file)
    if is_master():
        yield write_table(config_file)


def where(_config_file: Optional[str], file: str) -> str:
    """The command that edits it."""
    return f"what `{COMMANDS[file]}` shows"


def lines(_config_file: Optional[str], file: str) -> str:
    """What the complex or the global configuration lacks."""
    if file == "complex":
        return "" if has_attribute(qconf("-sc")) else f"{ATTRIBUTE}\n"
    there = parse(qconf("-sconf"))
    return "".join(
        f"{name:22} {value}\n" for name, value in hooks().items() if there.get(name) != value
    )


# ---- the table ----


def write_table(config_file: Optional[str]) -> str:
    """Publish the table for the filter, which looks for a new one at each submission."""
    setup_host.need_root()
    path, text = paths.GRIDENGINE_TABLE, render_table(config_file)
    if is_current(read_text(path), text):
        return f"{path} is up to date"
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    publish(path, text.encode(), 0o644)
    return f"wrote {path}"


def render_table(config_file: Optional[str]) -> str:
    """Write the table from the configuration and the store."""
    known = config.load_config(config_file)
    digests = {name: found[0] for name, found in tables.find_digests(known).items()}
    return gridengine_table.render(known, digests, time.time())


def is_current(table: str, fresh: str, *, digests: bool = True) -> bool:
    """Whether a table says what a fresh one would, and its digests count for long enough yet.

    Without `digests` they are not looked at: one that is not yet in the table does no harm.
    """
    try:
        old, new = gridengine_table.parse(table), gridengine_table.parse(fresh)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    if not digests:
        old, new = (each._replace(digests={}, pins_until=None) for each in (old, new))
    if old._replace(pins_until=None) != new._replace(pins_until=None):
        return False
    if old.pins_until is None or new.pins_until is None:
        return old.pins_until is new.pins_until
    now = time.time()
    return old.pins_until - now > (new.pins_until - now) / 2


# ---- checks ----


def check(config_file: Optional[str]) -> List[Finding]:
    """Look at everything that a job with a container needs of this host and of Grid Engine."""
    findings = setup_host.check_programs("gridengine")
    if is_master():
        findings.append(check_table(config_file))
    if states.find_command("qconf") is None:
        return [*findings, Finding("qconf", "Grid Engine", MISSING, f"not on this host: {HINT}")]
    there = parse(qconf("-sconf"))
    if not there:
        return [*findings, Finding("qconf", "sge_qmaster", WRONG, "does not answer `qconf -sconf`")]
    return [*findings, check_attribute(), *check_hooks(there), *check_hosts(), *check_ways(there)]


def check_table(config_file: Optional[str]) -> Finding:
    """Compare the table with the configuration."""
    table, fresh = read_text(paths.GRIDENGINE_TABLE), render_table(config_file)
    if is_current(table, fresh):
        return Finding("table", "environments", WELL, paths.GRIDENGINE_TABLE)
    if is_current(table, fresh, digests=False):
        detail = "images were pulled since: `setup gridengine --table` has new jobs run them"
        return Finding("table", "digests", NOTE, detail)
    state = WRONG if table else MISSING
    return Finding("table", "environments", state, "run `hpcwrap setup gridengine --table`")


def check_attribute() -> Finding:
    """Look for the attribute that `-l container=` names."""
    if has_attribute(qconf("-sc")):
        return Finding("complex", COMPLEX, WELL, "RESTRING, requestable")
    return Finding("complex", COMPLEX, MISSING, f"`qconf -mc`: {ATTRIBUTE}")


def check_hooks(there: Dict[str, str]) -> List[Finding]:
    """Look for our programs in the global configuration."""
    return [
        _compare("conf", name, there.get(name, "none"), value) for name, value in hooks().items()
    ]


def _compare(file: str, name: str, found: str, wanted: str) -> Finding:
    if found == wanted:
        return Finding(file, name, WELL, found)
    state = MISSING if found.lower() == "none" else WRONG
    return Finding(file, name, state, f"is {found}; `{COMMANDS['conf']}`: {name} {wanted}")


def check_hosts() -> List[Finding]:
    """Look for hosts that have a shepherd_cmd of their own, which wins (sge_conf(5))."""
    findings = []
    for host in qconf("-sconfl").split():
        own = parse(qconf("-sconf", host)).get("shepherd_cmd")
        wanted = hooks()["shepherd_cmd"]
        if own not in (None, wanted):
            detail = f"is {own} on this host, where jobs run without their container"
            findings.append(Finding(f"conf of {host}", "shepherd_cmd", WRONG, detail))
    return findings


def check_ways(there: Dict[str, str]) -> List[Finding]:
    """Look at how qrsh reaches a node."""
    others = [name for name in BUILTIN if there.get(name, "builtin") != "builtin"]
    if not others:
        return [Finding("conf", "qrsh", WELL, "builtin")]
    detail = "not builtin: what they start on a node does not get into the container"
    return [Finding("conf", ", ".join(others), NOTE, detail)]


# ---- Grid Engine's answers ----


def need_qconf() -> str:
    """The path of qconf.  Raises SiteError."""
    program = states.find_command("qconf")
    if program is None:
        raise SiteError("cannot find Grid Engine's qconf on this host", HINT)
    return program


def qconf(*words: str) -> str:
    """What qconf prints, empty where it fails or is not there."""
    program = states.find_command("qconf")
    if program is None:
        return ""
    # qconf(1): without this, long values go on in further lines.
    env = {**os.environ, **run.base_environment(SGE_SINGLE_LINE="1")}
    try:
        return run.output([program, *words], env=env, timeout=QCONF_TIMEOUT).decode(
            errors="surrogateescape"
        )
    except HpcwrapError:
        return ""


def parse(text: str) -> Dict[str, str]:
    """Lines of a name and its value."""
    pairs = (line.split(None, 1) for line in text.splitlines() if not line.startswith("#"))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def has_attribute(text: str) -> bool:
    """Whether a complex has ours, of a type that takes any name, and requestable."""
    rows = [line.split() for line in text.splitlines()]
    return any(row[:1] == [COMPLEX] and row[2:5:2] == ["RESTRING", "YES"] for row in rows)
