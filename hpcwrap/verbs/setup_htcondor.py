"""What `hpcwrap setup htcondor` does to this host, one function a step; all may be run again."""

from __future__ import annotations

import grp
import os
import pwd
import re
from typing import Dict, Iterator, List, Optional, Tuple

from hpcwrap import config, paths, run
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.schedulers import htcondor_files, slurm_accounts
from hpcwrap.textfile import read_text
from hpcwrap.verbs import setup_helper, setup_host

FILES: Tuple[str, ...] = ()
"""Its own files in HTCondor's directory for them are all that it needs."""

AFTERWARDS = "restart HTCondor on this host (condor_restart)"
NODE_FILE = "60-hpcwrap-node.config"
SUBMIT_FILE = "60-hpcwrap-submit.config"
PACKAGE = "HTCondor (Debian: htcondor)"


def install(config_file: Optional[str]) -> Iterator[str]:
    """Build the C parts, install the settings, make the store, write HTCondor's files.

    Yields a line for each step.  Raises HpcwrapError.
    """
    setup_host.need_root()
    daemons = list_daemons()
    yield from setup_host.prepare(config_file)
    changed = False
    if "STARTD" in daemons:
        yield setup_helper.install()
        changed = setup_helper.publish(node_path(), render_node(config_file))
        yield f"{node_path()} is {'written' if changed else 'up to date'}"
    if "SCHEDD" in daemons:
        yield write_table(config_file)
    if changed:
        yield f"now {AFTERWARDS}, and see `hpcwrap setup htcondor --check`"


def where(_config_file: Optional[str], file: str) -> str:
    """Nowhere: there is nothing to add by hand."""
    return file


def lines(_config_file: Optional[str], _file: str) -> str:
    """Nothing: as `where`."""
    return ""


def write_table(config_file: Optional[str]) -> str:
    """Write the schedd's part, and have the schedd read it, when it has changed."""
    setup_host.need_root()
    path = submit_path()
    if not setup_helper.publish(path, render_submit(config_file)):
        return f"{path} is up to date"
    try:
        condor("condor_reconfig", "-schedd")
    except HpcwrapError as error:
        return f"wrote {path}; the schedd reads it when it starts ({error.sentence()})"
    return f"wrote {path}, and had the schedd read it"


# ---- what is written ----


def render_node(config_file: Optional[str]) -> str:
    """The nodes' part."""
    settings = config.load_config(config_file).settings
    return htcondor_files.render_node(settings, node_programs())


def node_programs() -> htcondor_files.Programs:
    """What of hpcwrap HTCondor runs on a node."""
    return htcondor_files.Programs(
        job=paths.singularity_program(),
        release=paths.data("epilog", "htcondor.sh"),
        session=paths.data("enter", "htcondor.sh"),
    )


def render_submit(config_file: Optional[str]) -> str:
    """The schedd's part."""
    known = config.load_config(config_file)
    groups = {group for each in known.environments.values() for group in each.groups}
    listed = slurm_accounts.can_list(slurm_accounts.NSSWITCH)
    members = {group: find_members(group) if listed else None for group in groups}
    return htcondor_files.render_submit(known, members)


def find_members(group: str) -> List[str]:
    """Names of all members of a group: those it lists and those whose primary group it is."""
    try:
        found = grp.getgrnam(group)
    except KeyError:
        return []
    primary = {user.pw_name for user in pwd.getpwall() if user.pw_gid == found.gr_gid}
    return sorted(primary | set(found.gr_mem))


def node_path() -> str:
    """Where the nodes' part belongs."""
    return os.path.join(directory(), NODE_FILE)


def submit_path() -> str:
    """Where the schedd's part belongs."""
    return os.path.join(directory(), SUBMIT_FILE)


def directory() -> str:
    """The directory of HTCondor's configuration that takes files of others.  Raises SiteError."""
    found = value_of("LOCAL_CONFIG_DIR").split(",")[-1].strip()
    if not found:
        raise SiteError("cannot tell where to write: HTCondor has no LOCAL_CONFIG_DIR", "set it")
    return found


def list_daemons() -> List[str]:
    """What HTCondor runs on this host."""
    return re.split(r"[\s,]+", value_of("DAEMON_LIST").strip())


def value_of(name: str) -> str:
    """A value of HTCondor's configuration; empty where it is not defined."""
    try:
        return condor("condor_config_val", name).strip()
    except run.CommandError:
        return ""


def condor(program: str, *words: str) -> str:
    """What one of HTCondor's commands says.  Raises HpcwrapError."""
    path = run.need_program(program, PACKAGE)
    return run.output([path, *words], timeout=60).decode(errors="replace")


# ---- --check ----


def check(config_file: Optional[str]) -> List[Finding]:
    """Look at everything that a job with a container needs here; changes nothing."""
    findings = setup_host.check_programs("htcondor")
    daemons = list_daemons()
    if "STARTD" in daemons:
        findings += [setup_helper.check(), check_file(node_path(), render_node(config_file))]
        findings += check_node()
    if "SCHEDD" in daemons:
        findings.append(check_file(submit_path(), render_submit(config_file)))
        findings += check_schedd()
    if not {"STARTD", "SCHEDD"} & set(daemons):
        findings.append(Finding("DAEMON_LIST", "role", NOTE, "runs no jobs and takes none"))
    return findings


def check_file(path: str, text: str) -> Finding:
    """See whether one of our files is as it would be written now."""
    found = read_text(path)
    name = os.path.basename(path)
    if not found:
        return Finding(path, name, MISSING, "run `hpcwrap setup htcondor`")
    if found != text:
        return Finding(path, name, WRONG, "is of other settings: run `hpcwrap setup htcondor`")
    return Finding(path, name, WELL, "as it should be")


def check_node() -> List[Finding]:
    """See whether what HTCondor reads in the end is what we wrote, and what the starter makes."""
    programs = node_programs()
    wanted: Dict[str, str] = {
        "SINGULARITY": programs.job,
        "SSH_TO_JOB_SSHD_ARGS": htcondor_files.sshd_arguments(programs),
        "HPCWRAP_HOOK_JOB_EXIT": programs.release,
        "SINGULARITY_RUN_TEST_BEFORE_JOB": "False",
        "DOCKER": "",
    }
    return [check_value(name, text) for name, text in wanted.items()] + [check_cgroups()]


def check_value(name: str, wanted: str) -> Finding:
    """See whether another file of the configuration says something else."""
    found = value_of(name)
    if found.lower() == wanted.lower():
        return Finding("configuration", name, WELL, found or "not set")
    return Finding(
        "configuration", name, WRONG, f"is {found or 'not set'}, not {wanted or 'empty'}"
    )


def check_cgroups() -> Finding:
    """See who holds jobs to their memory."""
    if value_of("BASE_CGROUP") and os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return Finding("configuration", "limits", WELL, "the starter's, by cgroups")
    return Finding("configuration", "limits", NOTE, "the helper's: the starter has no cgroups here")


def check_schedd() -> List[Finding]:
    """See whether the schedd applies our transforms and requirements."""
    return [
        Finding(
            "configuration", name, WELL if "Hpcwrap" in value_of(name) else WRONG, value_of(name)
        )
        for name in ("JOB_TRANSFORM_NAMES", "SUBMIT_REQUIREMENT_NAMES")
    ]
