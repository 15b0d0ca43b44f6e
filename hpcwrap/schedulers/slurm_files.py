"""What Slurm's files have to say for hpcwrap: what they lack, and the lines to add.

Functions of texts, but for the shell patterns of Prolog= and the includes of plugstack.conf.
"""

from __future__ import annotations

import glob
import os
import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from hpcwrap.config import Settings
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.schedulers import slurm_table
from hpcwrap.textfile import read_text

CONF, PLUGSTACK, JOB_SUBMIT = "slurm.conf", "plugstack.conf", "job_submit.lua"
FILES = (CONF, PLUGSTACK, JOB_SUBMIT)
CGROUP = "cgroup.conf"
MEMLOCK = "PropagateResourceLimitsExcept"


class Place(NamedTuple):
    """Where hpcwrap's parts for Slurm are, and `directory`, where Slurm's files are."""

    prolog: str
    epilog: str
    filter: str
    plugin: str
    table: str
    directory: str

    def path(self, file: str) -> str:
        """One of Slurm's own files."""
        return os.path.join(self.directory, file)


class Wanted(NamedTuple):
    """A key of slurm.conf: `value` must be the value, or for a list one of `accepted` in it."""

    key: str
    value: str
    why: str
    accepted: Tuple[str, ...] = ()


def wanted_settings(place: Place) -> Tuple[Wanted, ...]:
    """All that slurm.conf must say, each with the reason that `setup --check` gives."""
    return (
        Wanted("Prolog", place.prolog, "makes the container on each node"),
        Wanted("Epilog", place.epilog, "drops it"),
        Wanted(
            "PrologFlags",
            "Alloc",
            "or the prolog's environment comes from the user's srun",
            ("Alloc", "Contain", "RunInJob"),
        ),
        Wanted("JobSubmitPlugins", "lua", "checks names at submission", ("lua",)),
        Wanted(
            "LaunchParameters",
            "use_interactive_step",
            "or salloc refuses --container",
            ("use_interactive_step",),
        ),
    )


def parse_conf(text: str) -> Dict[str, str]:
    """Read `scontrol show config` or slurm.conf: keys in lower case, the last of a key counts.

    An empty value and scontrol's ``(null)`` are left out.
    """
    values: Dict[str, str] = {}
    for line in re.sub(r"\\\n", "", text).splitlines():
        found = re.match(r"\s*(\w+)(?:\[\d+\])?\s*=\s*(.*?)\s*(?:(?<!\\)#.*)?$", line)
        if found and found.group(2) not in ("", "(null)"):
            values[found.group(1).lower()] = found.group(2)
    return values


# ---- slurm.conf ----


def check_conf(values: Mapping[str, str], place: Place) -> List[Finding]:
    """Compare slurm.conf with what it must say."""
    return [_check_wanted(wanted, values) for wanted in wanted_settings(place)]


def missing_settings(values: Mapping[str, str], place: Place) -> List[Tuple[str, str]]:
    """Key and value of the lines to add; what a list holds already stays in it."""
    return [
        (wanted.key, _completed(wanted, values.get(wanted.key.lower())))
        for wanted in wanted_settings(place)
        if _check_wanted(wanted, values).state != WELL
    ]


def check_agreement(values: Mapping[str, str], settings: Settings) -> List[Finding]:
    """Compare what both Slurm and hpcwrap have to know, and name what does not go together."""
    findings = []
    spool = values.get("slurmdspooldir", settings.slurm_spool_directory)
    if spool != settings.slurm_spool_directory:
        detail = f"is {spool}: set slurm_spool_directory in hpcwrap.yaml"
        findings.append(Finding(CONF, "SlurmdSpoolDir", WRONG, detail))
    if "taskprolog" in values:
        detail = f"{values['taskprolog']} runs on the host's root with each rank's variables"
        findings.append(Finding(CONF, "TaskProlog", NOTE, detail))
    return findings


HOLDING = (
    (
        "TaskPlugin",
        "task/cgroup",
        "cgroup.conf has no effect, and nothing holds jobs to their share",
    ),
    ("ProctrackType", "proctrack/cgroup", "processes in a session of their own may outlive a job"),
)
"""Keys of slurm.conf by which jobs are held to what they got, and what happens without."""

CONSTRAINING = (
    ("ConstrainCores", "a job may run on all CPUs of the node"),
    ("ConstrainRAMSpace", "a job may use all memory of the node"),
    ("ConstrainSwapSpace", "a job at its memory limit goes on into swap"),
    ("ConstrainDevices", "a job may use the GPUs of all"),
)
"""Keys of cgroup.conf, each to be yes, and what happens without."""


def check_limits(values: Mapping[str, str]) -> List[Finding]:
    """See whether Slurm holds jobs to their limits, for hpcwrap leaves that to it.

    `values` are those of slurm.conf and of cgroup.conf, which `scontrol show config` has as well.
    What is missing is the site's choice, so it is told and never an error.
    """
    findings = []
    for key, plugin, without in HOLDING:
        value = values.get(key.lower(), "")
        well = plugin in value.split(",")
        detail = value if well else f"without {plugin}: {without}"
        findings.append(Finding(CONF, key, WELL if well else NOTE, detail))
    if findings[0].state == WELL:
        findings += [_check_constrained(key, without, values) for key, without in CONSTRAINING]
    return findings


def check_memlock(values: Mapping[str, str], settings: Settings) -> Finding:
    """See whether ranks may lock the memory that an adapter of InfiniBand is to reach.

    Slurm hands the limits of whoever submits on to the ranks, but for those that it is told to
    leave as slurmd has them (slurm.conf(5), PropagateResourceLimitsExcept).
    """
    if any(limit.name == "memlock" for limit in settings.rlimits):
        return Finding(CONF, MEMLOCK, WELL, "hpcwrap.yaml sets memlock")
    handed_on, excepted = (
        values.get(key.lower(), "").upper().split(",")
        for key in ("PropagateResourceLimits", MEMLOCK)
    )
    named = {"ALL", "MEMLOCK", ""} & set(handed_on)
    if "MEMLOCK" in excepted or not named:
        return Finding(CONF, MEMLOCK, WELL, "memlock is slurmd's")
    detail = "ranks get the memlock of the submit host: say `rlimits: [memlock=unlimited]`"
    return Finding(CONF, MEMLOCK, NOTE, detail)


def _check_constrained(key: str, without: str, values: Mapping[str, str]) -> Finding:
    if values.get(key.lower(), "").lower() in ("yes", "true", "1"):
        return Finding(CGROUP, key, WELL, "yes")
    return Finding(CGROUP, key, NOTE, f"without {key}=yes: {without}")


def _check_wanted(wanted: Wanted, values: Mapping[str, str]) -> Finding:
    value = values.get(wanted.key.lower())
    if value is None:
        return Finding(CONF, wanted.key, MISSING, f"{wanted.key}={wanted.value}: {wanted.why}")
    fits = _fits_list(wanted, value) if wanted.accepted else _fits_path(wanted, value)
    if fits:
        return Finding(CONF, wanted.key, WELL, value)
    detail = f"{value} lacks {wanted.value}: {wanted.why}"
    return Finding(CONF, wanted.key, WRONG, detail)


def _fits_list(wanted: Wanted, value: str) -> bool:
    words = {word.strip().lower() for word in value.split(",")}
    return any(word.lower() in words for word in wanted.accepted)


def _fits_path(wanted: Wanted, value: str) -> bool:
    """Prolog= may be a pattern over a directory of scripts, ours or a link to it among them."""
    names = [name for pattern in value.split(",") for name in glob.glob(pattern.strip())]
    return wanted.value in (value, *map(os.path.realpath, names))


def _completed(wanted: Wanted, value: Optional[str]) -> str:
    return f"{value},{wanted.value}" if value and wanted.accepted else wanted.value


# ---- plugstack.conf and job_submit.lua ----


def read_plugstack(path: str) -> str:
    """Read plugstack.conf and the files that it includes (spank(7)); no file is an empty one."""
    text = read_text(path)
    patterns = re.findall(r"^\s*include\s+(\S+)", text, re.MULTILINE)
    names = [os.path.join(os.path.dirname(path), pattern) for pattern in patterns]
    return "\n".join(
        [text, *(read_text(name) for each in names for name in sorted(glob.glob(each)))]
    )


def check_plugstack(text: str, place: Place) -> Finding:
    """Look for our line, which must say `required`."""
    found = re.search(r"^\s*(\w+)\s+(\S*spank_hpcwrap\.so)", text, re.MULTILINE)
    if found is None:
        return Finding(PLUGSTACK, "required", MISSING, f"required {place.plugin}")
    if found.group(1) != "required":
        detail = f"{found.group(1)} lets jobs run without the container that they asked for"
        return Finding(PLUGSTACK, "required", WRONG, detail)
    if os.path.realpath(found.group(2)) != os.path.realpath(place.plugin):
        return Finding(PLUGSTACK, "required", WRONG, f"{found.group(2)} is not {place.plugin}")
    return Finding(PLUGSTACK, "required", WELL, place.plugin)


def check_job_submit(text: str, place: Place) -> Finding:
    """Look for the call of our filter in both functions of job_submit.lua."""
    code = re.sub(r"--[^\n]*", "", text)
    if place.filter not in code:
        return Finding(JOB_SUBMIT, "dofile", MISSING, f"dofile of {place.filter}")
    for name in ("submit", "modify"):
        if not re.search(rf"\.{name}\s*\(", code):
            return Finding(JOB_SUBMIT, name, WRONG, f"slurm_job_{name} does not call our {name}")
    return Finding(JOB_SUBMIT, "dofile", WELL, place.filter)


# ---- lines ----


def render_lines(file: str, place: Place) -> str:
    """Write what still has to be added to one of FILES; nothing when it has all."""
    text = read_plugstack(place.path(file)) if file == PLUGSTACK else read_text(place.path(file))
    engine = slurm_table.engine()
    if file == CONF:
        settings = missing_settings(parse_conf(text), place)
        return engine.get_template("slurm_conf.j2").render(settings=settings) if settings else ""
    if file == PLUGSTACK:
        done = check_plugstack(text, place).state == WELL
        template, values = "slurm_plugstack.j2", {"plugin": place.plugin}
    else:
        done = check_job_submit(text, place).state == WELL
        template, values = "slurm_job_submit.lua.j2", {"filter": place.filter, "table": place.table}
    return "" if done else engine.get_template(template).render(values)
