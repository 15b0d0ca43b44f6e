"""What `hpcwrap setup slurm` does to this host, one function a step; all may be run again."""

from __future__ import annotations

import os
import re
import time
from typing import Dict, Iterator, List, NamedTuple, Optional

from hpcwrap import config, paths, run
from hpcwrap.container import fabric
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.schedulers import slurm_accounts, slurm_files, slurm_table
from hpcwrap.schedulers.slurm_files import Place
from hpcwrap.textfile import read_text
from hpcwrap.verbs import setup_host, tables

FILES = slurm_files.FILES
AFTERWARDS = "restart slurmctld and slurmd"
NATIVE = {**setup_host.PROGRAMS, "spank_hpcwrap.so": paths.spank_plugin}
DIGEST_LINE = re.compile(r"^ *digests? = .*\n", re.MULTILINE)
PINS_LINE = re.compile(r"^ *pins_until = (\d+),\n", re.MULTILINE)
BUILT_FOR = re.compile(rb"built for Slurm 0x([0-9a-f]{6})")


class Site(NamedTuple):
    """The configuration and where everything is."""

    config: config.Config
    place: Place

    @property
    def is_controller(self) -> bool:
        """True on a host that slurmctld may run on: only it needs the table."""
        return run.find_program("slurmctld") is not None


def load_site(config_file: Optional[str]) -> Site:
    """Read the configuration.  Raises SiteError."""
    loaded = config.load_config(config_file)
    place = Place(
        prolog=paths.data("prolog", "slurm.sh"),
        epilog=paths.data("epilog", "slurm.sh"),
        filter=paths.data("submit", "slurm.lua"),
        plugin=paths.spank_plugin(),
        table=paths.SLURM_TABLE,
        directory=loaded.settings.slurm_configuration_directory,
    )
    return Site(loaded, place)


def install(config_file: Optional[str]) -> Iterator[str]:
    """Build the C parts, install the settings, make the store, write the table.

    Yields a line for each step.  Raises HpcwrapError.
    """
    setup_host.need_root()
    yield build_native()
    yield setup_host.install_settings(config.settings_file(config_file))
    site = load_site(config_file)
    yield setup_host.make_directories(site.config.settings)
    if site.is_controller:
        yield publish_table(site)


# ---- the C parts ----


def build_native() -> str:
    """Compile the programs and the SPANK plugin for the Slurm of this host."""
    anew = check_plugin().state != WELL
    return setup_host.build("all", NATIVE, anew=anew, explain=_explain)


def _explain(error: run.CommandError) -> HpcwrapError:
    if "slurm/spank.h" in error.stderr:
        return SiteError(
            "cannot build the SPANK plugin: Slurm's header spank.h is not installed",
            "install libslurm-dev (Debian) or slurm-devel (RPM) of the release that runs here",
        )
    return setup_host.explain_build(error)


# ---- the table ----


def render_table(site: Site) -> str:
    """Write the table from the configuration, the store and the accounts of this host."""
    known = site.config
    return slurm_table.render_table(
        known,
        tables.find_digests(known),
        slurm_accounts.find_accounts(
            slurm_table.named_users(known), slurm_table.named_groups(known)
        ),
        clear_container=os.path.exists(site.place.path("oci.conf")),
        now=time.time(),
    )


def write_table(config_file: Optional[str]) -> str:
    """Publish the table and have slurmctld read it, when it has changed."""
    return publish_table(load_site(config_file))


def publish_table(site: Site) -> str:
    """Publish the table of a site that has been read already."""
    setup_host.need_root()
    path, text = site.place.table, render_table(site)
    if is_current(read_text(path), text):
        return f"{path} is up to date"
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
    os.rename(temporary, path)
    touch(site.place.path(slurm_files.JOB_SUBMIT))
    broken = len(site.config.broken)
    note = f", {broken} broken (see `hpcwrap config --check`)" if broken else ""
    return f"wrote {path}: environments: {len(site.config.environments)}{note}"


def is_current(table: str, fresh: str) -> bool:
    """Whether a table says what a fresh one would, and its digests count for long enough yet."""
    if PINS_LINE.sub("", table) != PINS_LINE.sub("", fresh):
        return False
    until, then = (PINS_LINE.search(text) for text in (table, fresh))
    if not until or not then:
        return until is then
    left = int(until.group(1)) - time.time()
    return left > (int(then.group(1)) - time.time()) / 2


def renew_table(config_file: Optional[str]) -> None:
    """Tell slurmctld of digests that have changed, on its host, where it has been set up."""
    site = load_site(config_file)
    if site.is_controller:
        publish_table(site)


def touch(path: str) -> None:
    """Make slurmctld load job_submit.lua again, which loads the table.

    It compares whole seconds and loads only what is newer (slurm_lua.c, slurm_lua_loadscript): so
    the time goes forward by a second at least, even twice within one.
    """
    try:
        newer = max(int(time.time()), int(os.stat(path).st_mtime) + 1)
        os.utime(path, (newer, newer))
    except FileNotFoundError:
        return


# ---- lines and checks ----


def where(config_file: Optional[str], file: str) -> str:
    """The path of one of Slurm's files."""
    return load_site(config_file).place.path(file)


def lines(config_file: Optional[str], file: str) -> str:
    """What to add to one of Slurm's files; job_submit.lua is the controller's alone."""
    site = load_site(config_file)
    if file == slurm_files.JOB_SUBMIT and not site.is_controller:
        return ""
    return slurm_files.render_lines(file, site.place)


def check(config_file: Optional[str]) -> List[Finding]:
    """Look at everything that a job with a container needs of this host and of Slurm."""
    site = load_site(config_file)
    values = running_conf(site) or file_conf(site)
    findings = [
        *setup_host.check_programs("slurm"),
        check_plugin(),
        *slurm_files.check_conf(values, site.place),
        *slurm_files.check_agreement(values, site.config.settings),
        *slurm_files.check_limits({**cgroup_conf(site), **values}),
        *check_fabric(values, site),
        slurm_files.check_plugstack(
            slurm_files.read_plugstack(_plugstack(values, site)), site.place
        ),
        *check_controller(site),
    ]
    return [explain_restart(finding, site) for finding in findings]


def check_fabric(values: Dict[str, str], site: Site) -> List[Finding]:
    """Look at what InfiniBand needs, on a host that has it."""
    if not fabric.is_present():
        return []
    return [slurm_files.check_memlock(values, site.config.settings)]


def check_plugin() -> Finding:
    """Compare the release that the plugin was built for with the one that is installed."""
    path = paths.spank_plugin()
    try:
        with open(path, "rb") as file:
            found = BUILT_FOR.search(file.read())
    except OSError:
        return Finding("programs", "SPANK plugin", MISSING, f"{path}: run `hpcwrap setup slurm`")
    number = int(found.group(1), 16) if found else 0
    built, installed = f"{number >> 16}.{number >> 8 & 0xFF:02}", installed_release()
    if installed and built != installed:
        detail = f"built for Slurm {built}, but {installed} is here: run `hpcwrap setup slurm`"
        return Finding("programs", "SPANK plugin", WRONG, detail)
    return Finding("programs", "SPANK plugin", WELL, f"{path} for Slurm {built}")


def installed_release() -> str:
    """The installed Slurm as ``22.05``; empty when it cannot be told.

    Asks a daemon: the commands want a configuration and a controller even for their version.
    """
    daemon = run.find_program("slurmd", "slurmctld")
    found = re.search(rb"(\d+\.\d+)", run.output([daemon, "-V"])) if daemon else None
    return found.group(1).decode() if found else ""


def check_controller(site: Site) -> List[Finding]:
    """Look at what only slurmctld's host needs."""
    if not site.is_controller:
        return []
    text = read_text(site.place.path(slurm_files.JOB_SUBMIT))
    table = read_text(site.place.table)
    return [slurm_files.check_job_submit(text, site.place), check_table(table, site)]


def check_table(table: str, site: Site) -> Finding:
    """Compare the table with the configuration; a digest that is not yet in it does no harm."""
    fresh = render_table(site)
    if is_current(table, fresh):
        return Finding("table", "environments", WELL, site.place.table)
    if _without_digests(table) == _without_digests(fresh):
        detail = "images were pulled since: `setup slurm --table` has new jobs run them"
        return Finding("table", "digests", NOTE, detail)
    state = WRONG if table else MISSING
    detail = "is not as the settings and environments are: `setup slurm --table`"
    return Finding("table", "environments", state, detail)


def _without_digests(table: str) -> str:
    return DIGEST_LINE.sub("", PINS_LINE.sub("", table))


def explain_restart(finding: Finding, site: Site) -> Finding:
    """Tell what is in slurm.conf already, but not in force, from what is not in it."""
    if finding.file != slurm_files.CONF or finding.state not in (MISSING, WRONG):
        return finding
    there = [
        each
        for each in slurm_files.check_conf(file_conf(site), site.place)
        if each.what == finding.what and each.state == WELL
    ]
    if not there:
        return finding
    detail = "is in the file but not in force: restart slurmctld and slurmd"
    return finding._replace(state=WRONG, detail=detail)


def running_conf(site: Site) -> Dict[str, str]:
    """What slurmctld runs with; empty when it does not answer."""
    scontrol = run.find_program("scontrol")
    if scontrol is None:
        return {}
    conf = site.place.path(slurm_files.CONF)
    named = {"SLURM_CONF": conf} if os.path.exists(conf) else {}
    try:
        text = run.output(
            [scontrol, "show", "config"], env=run.base_environment(**named), timeout=20
        )
    except HpcwrapError:
        return {}
    return slurm_files.parse_conf(text.decode(errors="surrogateescape"))


def file_conf(site: Site) -> Dict[str, str]:
    """What slurm.conf says."""
    return slurm_files.parse_conf(read_text(site.place.path(slurm_files.CONF)))


def cgroup_conf(site: Site) -> Dict[str, str]:
    """What cgroup.conf says, where slurmctld does not answer."""
    return slurm_files.parse_conf(read_text(site.place.path(slurm_files.CGROUP)))


def _plugstack(values: Dict[str, str], site: Site) -> str:
    return values.get("plugstackconfig", site.place.path(slurm_files.PLUGSTACK))
