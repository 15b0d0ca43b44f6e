"""What `hpcwrap setup lsf` does: programs on each host, an esub for each environment.

bsub finds the method of `-a NAME` by a file's name, esub.NAME in LSF_SERVERDIR.  All may be run
again.
"""

from __future__ import annotations

import os
import re
from typing import Dict, Iterator, List, NamedTuple, Optional

from hpcwrap import config, paths, run
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.request import NONE
from hpcwrap.schedulers import lsf_files
from hpcwrap.schedulers.lsf_files import CONF, QUEUES, Place
from hpcwrap.templates import make_engine
from hpcwrap.textfile import read_text
from hpcwrap.verbs import setup_helper, setup_host, setup_sweep

FILES = lsf_files.FILES
AFTERWARDS = "have LSF read them, by `badmin reconfig`"

ALWAYS = ("hpcwrap", "container", NONE)
"""The mandatory method, the one with an argument, `-a "container(NAME)"`, and `-a none`."""

MARK = "written by `hpcwrap setup lsf`"


class Site(NamedTuple):
    """The configuration, and LSF's own."""

    config: config.Config
    place: Place

    @property
    def methods(self) -> List[str]:
        """The esubs that there are to be."""
        return [*ALWAYS, *sorted(self.config.environments)]


def load_site(config_file: Optional[str]) -> Site:
    """Read the configuration.  Raises SiteError."""
    return Site(config.load_config(config_file), lsf_files.find_place(os.environ))


def install(config_file: Optional[str]) -> Iterator[str]:
    """Build the C parts, install the settings, have the helper listen, a timer sweep, write esubs.

    Yields a line for each step.  Raises HpcwrapError.
    """
    setup_host.need_root()
    need_servers(lsf_files.find_place(os.environ))
    yield from setup_host.prepare(config_file)
    yield setup_helper.install()
    yield setup_sweep.install()
    yield write_table(config_file)


def where(config_file: Optional[str], file: str) -> str:
    """The path of the file."""
    return load_site(config_file).place.path(file)


def lines(config_file: Optional[str], file: str) -> str:
    """What a file still lacks."""
    site = load_site(config_file)
    values = lsf_files.parse_conf(read_text(site.place.conf))
    queues = lsf_files.read_queues(site.place)
    if file == CONF:
        methods = values.get("LSB_ESUB_METHOD", "").split()
        wanted = " ".join([*methods, lsf_files.METHOD])
        return "" if lsf_files.METHOD in methods else render("lsf_conf.j2", methods=wanted)
    if any(map(lsf_files.starts_containers, queues.values())):
        return ""
    starter = lsf_files.starter_line(paths.data("enter", "lsf.sh"))
    hooks = {stage: paths.data(stage, "lsf.sh") for stage in ("prolog", "epilog")}
    return render("lsf_queues.j2", starter=starter, **hooks)


def render(template: str, **values: str) -> str:
    """Fill in a template."""
    return make_engine().get_template(template).render(values)


# ---- the esubs ----


def write_table(config_file: Optional[str]) -> str:
    """Write an esub for each environment into LSF_SERVERDIR, and take away those of others gone."""
    setup_host.need_root()
    site = load_site(config_file)
    directory = need_servers(site.place)
    there = find_methods(directory)
    wanted = {name: esub_text(name) for name in site.methods}
    taken = [name for name in wanted if name not in there and is_foreign(directory, name)]
    changed = [name for name in wanted if name not in taken and there.get(name) != wanted[name]]
    for name in changed:
        publish(os.path.join(directory, f"esub.{name}"), wanted[name])
    gone = sorted(set(there) - set(wanted))
    for name in gone:
        os.unlink(os.path.join(directory, f"esub.{name}"))
    return describe(directory, changed, gone, taken)


def need_servers(place: Place) -> str:
    """The directory of LSF's own programs.  Raises SiteError."""
    if not os.path.isdir(place.servers):
        raise SiteError(
            f"cannot find LSF's programs: LSF_SERVERDIR of {place.conf} is "
            f"{place.servers or 'not set'}",
            "set LSF_ENVDIR to the directory of lsf.conf",
        )
    return place.servers


def describe(directory: str, changed: List[str], gone: List[str], taken: List[str]) -> str:
    """Say what was done."""
    told = [f"{verb} {', '.join(names)}" for verb, names in (("wrote", changed), ("removed", gone))]
    done = [text for text, names in zip(told, (changed, gone)) if names]
    if taken:
        done.append(f"left {', '.join(taken)} alone, which are not ours")
    return f"methods of bsub -a in {directory}: {'; '.join(done) or 'up to date'}"


def find_methods(directory: str) -> Dict[str, str]:
    """Our esubs that are there, with their texts."""
    found = {}
    for file in sorted(os.listdir(directory)):
        text = read_text(os.path.join(directory, file)) if file.startswith("esub.") else ""
        if MARK in text:
            found[file[len("esub.") :]] = text
    return found


def is_foreign(directory: str, name: str) -> bool:
    """Whether a file of that name is somebody else's."""
    return os.path.lexists(os.path.join(directory, f"esub.{name}"))


def esub_text(name: str) -> str:
    """The script of a method."""
    return render("lsf_esub.j2", name=name, filter=paths.data("submit", "lsf.sh"))


def publish(path: str, text: str) -> None:
    """Put a script in place by rename: bsub may be starting the old one."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o755)
        file.write(text)
    os.rename(temporary, path)


# ---- checks ----


def check(config_file: Optional[str]) -> List[Finding]:
    """Look at everything that a job with a container needs of this host and of LSF."""
    site = load_site(config_file)
    values = lsf_files.parse_conf(read_text(site.place.conf))
    return [
        *setup_host.check_programs("lsf"),
        setup_helper.check(),
        *check_flavour(site.place),
        *lsf_files.check_conf(values, site.place),
        *lsf_files.check_queues(lsf_files.read_queues(site.place), site.place),
        *check_running(lsf_files.read_queues(site.place), site.place),
        *lsf_files.check_links(site.methods, site.place),
        check_commands(site),
    ]


def check_flavour(place: Place) -> List[Finding]:
    """Say which LSF this is: they differ in what bsub does with an unknown method."""
    lsid = os.path.join(place.commands, "lsid")
    if not os.access(lsid, os.X_OK):
        detail = f"cannot find lsid in LSF_BINDIR of {place.conf}"
        return [Finding("lsf", "release", WRONG, detail)]
    try:
        text = run.output([lsid], env=lsf_environment(place), timeout=20).decode(errors="replace")
    except HpcwrapError as error:
        return [Finding("lsf", "release", NOTE, f"lsid does not answer: {error.sentence()}")]
    return [Finding("lsf", "release", WELL, text.split("\n", 1)[0].strip())]


def lsf_environment(place: Place) -> Dict[str, str]:
    """What LSF's commands want in their environment."""
    return run.base_environment(LSF_ENVDIR=os.path.dirname(place.conf))


def check_running(queues: Dict[str, lsf_files.Queue], place: Place) -> List[Finding]:
    """See whether what the file says of JOB_STARTER is in force; nothing where bqueues fails."""
    bqueues = os.path.join(place.commands, "bqueues")
    try:
        text = run.output([bqueues, "-l"], env=lsf_environment(place), timeout=20)
    except HpcwrapError:
        return []
    running = running_starters(text.decode(errors="replace"))
    stale = [
        name
        for name, queue in queues.items()
        if lsf_files.starts_containers(queue) and lsf_files.STARTER not in running.get(name, "")
    ]
    if not stale:
        return []
    detail = f"is in the file but not in force for {', '.join(stale)}: `badmin reconfig`"
    return [Finding(QUEUES, "JOB_STARTER", WRONG, detail)]


def running_starters(text: str) -> Dict[str, str]:
    """Queue → its JOB_STARTER, from `bqueues -l`."""
    found = {}
    for part in re.split(r"^QUEUE:[ \t]*", text, flags=re.MULTILINE)[1:]:
        starter = re.search(r"^JOB_STARTER:[ \t]*(.*)", part, re.MULTILINE)
        found[part.split(None, 1)[0]] = starter.group(1) if starter else ""
    return found


def check_commands(site: Site) -> Finding:
    """Look at the setting that has LSF's commands inside containers."""
    directory = site.config.settings.lsf_commands
    if directory and os.access(os.path.join(directory, "bsub"), os.X_OK):
        return Finding(
            "settings", "lsf_commands", WELL, f"{directory}: bsub and others work inside"
        )
    detail = f"set it to {site.place.commands or 'LSF_BINDIR'}: else no mpirun reaches other hosts"
    return Finding("settings", "lsf_commands", WRONG if directory else MISSING, detail)
