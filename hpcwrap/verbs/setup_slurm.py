"""What `hpcwrap setup slurm` does to this host, one function a step; all may be run again."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from hpcwrap import config, paths, run
from hpcwrap.container import fabric
from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image.source import parse_source
from hpcwrap.image.store import Store
from hpcwrap.schedulers import slurm_accounts, slurm_files, slurm_table
from hpcwrap.schedulers.slurm_files import MISSING, NOTE, WELL, WRONG, Finding, Place
from hpcwrap.textfile import read_text

NATIVE = {
    "hpcwrap-enter": paths.enter_program,
    "hpcwrap-host": paths.host_program,
    "hpcwrap-launch": paths.launch_program,
    "spank_hpcwrap.so": paths.spank_plugin,
}
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
    need_root()
    yield build_native()
    yield install_settings(config.settings_file(config_file))
    site = load_site(config_file)
    yield make_directories(site)
    if site.is_controller:
        yield write_table(site)


def need_root() -> None:
    """Raise UserError for ordinary users."""
    if os.geteuid() != 0:
        raise UserError("cannot set up this host: that needs root")


# ---- the C parts ----


def build_native() -> str:
    """Compile hpcwrap-enter and the SPANK plugin for the Slurm of this host."""
    if not is_stale():
        return f"{paths.spank_plugin()} is up to date"
    for path in map(os.path.dirname, (paths.enter_program(), paths.spank_plugin())):
        os.makedirs(path, exist_ok=True)
    make = run.need_program("make", "make")
    run.need_program("cc", "gcc")
    with tempfile.TemporaryDirectory(prefix="hpcwrap-") as build:
        try:
            run.output([make, "-s", "-C", paths.data("native"), f"BUILD={build}"])
        except run.CommandError as error:
            raise _explain(error) from error
        for name, target in NATIVE.items():
            publish_program(os.path.join(build, name), target())
    return f"built {paths.enter_program()} and {paths.spank_plugin()}"


def is_stale() -> bool:
    """True when a program is missing, older than its source or made for another Slurm."""
    built = [target() for target in NATIVE.values()]
    if not all(map(os.path.exists, built)) or check_plugin().state != WELL:
        return True
    native = paths.data("native")
    sources = [entry.stat().st_mtime for entry in os.scandir(native) if entry.is_file()]
    return max(sources) > min(map(os.path.getmtime, built))


def publish_program(source: str, target: str) -> None:
    """Put a file in place by rename: daemons may have the old one mapped."""
    temporary = f"{target}.{os.getpid()}"
    shutil.copyfile(source, temporary)
    os.chmod(temporary, 0o755)  # noqa: S103  a program and a library, for all to execute
    os.rename(temporary, target)


def _explain(error: run.CommandError) -> HpcwrapError:
    if "slurm/spank.h" in error.stderr:
        return SiteError(
            "cannot build the SPANK plugin: Slurm's header spank.h is not installed",
            "install libslurm-dev (Debian) or slurm-devel (RPM) of the release that runs here",
        )
    return SiteError(f"cannot build the C parts: {run.last_line(error.stderr)}")


# ---- settings and directories ----


def install_settings(file: str) -> str:
    """Install the shipped settings, unless there are settings."""
    if os.path.exists(file):
        return f"{file} is there already and stays as it is"
    shutil.copytree(
        paths.data("conf"), os.path.dirname(file), copy_function=copy_new, dirs_exist_ok=True
    )
    return f"installed {file}"


def copy_new(source: str, target: str) -> str:
    """Copy a file unless there is one."""
    return target if os.path.exists(target) else shutil.copy(source, target)


def make_directories(site: Site) -> str:
    """Make the store's directory and the log's; root's, readable by all."""
    settings = site.config.settings
    for path in (settings.store, os.path.dirname(settings.log)):
        os.makedirs(path, mode=0o755, exist_ok=True)
    return f"the store is {settings.store}"


# ---- the table ----


def render_table(site: Site) -> str:
    """Write the table from the configuration, the store and the accounts of this host."""
    known = site.config
    store = Store(known.settings.store)
    references = {environment.image for environment in known.environments.values()}
    return slurm_table.render_table(
        known,
        slurm_table.digests_of(known, {text: find_digests(store, text) for text in references}),
        slurm_accounts.find_accounts(
            slurm_table.named_users(known), slurm_table.named_groups(known)
        ),
        clear_container=os.path.exists(site.place.path("oci.conf")),
        now=time.time(),
    )


def find_digests(store: Store, reference: str) -> Tuple[str, ...]:
    """Digests that a reference has had, newest first; none where its image is not in the store."""
    try:
        image, link = store.find(reference), store.find_link(str(parse_source(reference)))
    except HpcwrapError:
        return ()
    if image is None:
        return ()
    return (image.digest, *(link.history[1:] if link else ()))


def write_table(site: Site) -> str:
    """Publish the table and have slurmctld read it, when it has changed."""
    need_root()
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
    if os.geteuid() == 0 and site.is_controller and os.path.exists(site.place.table):
        write_table(site)


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


def lines(site: Site, file: str) -> str:
    """What to add to one of Slurm's files; job_submit.lua is the controller's alone."""
    if file == slurm_files.JOB_SUBMIT and not site.is_controller:
        return ""
    return slurm_files.render_lines(file, site.place)


def check(site: Site) -> List[Finding]:
    """Look at everything that a job with a container needs of this host and of Slurm."""
    values = running_conf(site) or file_conf(site)
    findings = [
        *check_programs(),
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


def check_programs() -> List[Finding]:
    """Look at the compiled parts."""
    programs = [paths.enter_program(), paths.host_program(), paths.launch_program()]
    return [*(check_program(path) for path in programs), check_plugin()]


def check_program(path: str) -> Finding:
    """See whether a program has been compiled."""
    there = os.access(path, os.X_OK)
    detail = path if there else f"{path}: run `hpcwrap setup slurm`"
    return Finding("programs", os.path.basename(path), WELL if there else MISSING, detail)


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
