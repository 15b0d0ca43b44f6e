"""What `hpcwrap setup pbs` does: on a node its programs, on pbs_server's host the hooks, too.

pbs_server sends the hooks to the nodes by itself.  All may be run again.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from hpcwrap import config, log, paths, run
from hpcwrap.errors import HpcwrapError, SiteError
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.schedulers import pbs, pbs_hooks
from hpcwrap.schedulers.pbs_hooks import Hook
from hpcwrap.textfile import read_text
from hpcwrap.verbs import setup_host, tables

FILES: Tuple[str, ...] = ()
AFTERWARDS = "nothing is left to do"
SOURCE, CONFIGURATION = "application/x-python", "application/x-config"


class Site(NamedTuple):
    """The configuration, and PBS's own."""

    config: config.Config
    place: pbs.Installation

    @property
    def is_server(self) -> bool:
        """True on pbs_server's host: only there can root change hooks."""
        return self.place.server

    def hooks(self) -> List[Hook]:
        """The hooks as this site's settings want them."""
        return list(pbs_hooks.hooks(self.config.settings.pull_timeout))


def load_site(config_file: Optional[str]) -> Site:
    """Read the configuration.  Raises SiteError."""
    return Site(config.load_config(config_file), pbs.read_installation(os.environ))


def install(config_file: Optional[str]) -> Iterator[str]:
    """Build the C parts, install the settings, make the store; tell pbs_server of the hooks.

    Yields a line for each step.  Raises HpcwrapError.
    """
    setup_host.need_root()
    need_programs(pbs.read_installation(os.environ))
    yield from setup_host.prepare(config_file)
    site = load_site(config_file)
    if site.is_server:
        yield install_resource(site)
        for hook in site.hooks():
            yield install_hook(site, hook)


def need_programs(place: pbs.Installation) -> None:
    """Raise SiteError on a host without PBS."""
    if not os.path.isdir(place.programs):
        raise SiteError(
            f"cannot find PBS on this host: PBS_EXEC of {paths.PBS_CONF} is no directory: "
            f"{place.programs}",
            "set PBS_CONF_FILE where pbs.conf is elsewhere",
        )


def where(config_file: Optional[str], file: str) -> str:  # noqa: ARG001
    """No file of PBS's has lines of ours."""
    return file


def lines(config_file: Optional[str], file: str) -> str:  # noqa: ARG001
    """No file of PBS's has lines of ours."""
    return ""


def write_table(config_file: Optional[str]) -> str:
    """Give the submit hook its table anew."""
    setup_host.need_root()
    site = load_site(config_file)
    if not site.is_server:
        raise SiteError("cannot write the table here", "run this where pbs_server runs")
    return install_hook(site, site.hooks()[0])


def renew_table(config_file: Optional[str]) -> None:
    """Tell the submit hook of digests that have changed, where pbs_server runs and has the hook.

    Never an error: jobs run the digests that the table had, which may be what is wanted.
    """
    site = load_site(config_file)
    hook = site.hooks()[0]
    if not site.is_server or not export(site, hook, CONFIGURATION):
        return
    try:
        import_part(site, hook, CONFIGURATION, configuration_of(site, hook))
    except HpcwrapError as error:
        log.warn(error.sentence())


# ---- what pbs_server is told ----


def install_resource(site: Site) -> str:
    """Make the resource, with the flag that sends it to nodes."""
    found = pbs_hooks.parse_attributes(qmgr(site, f"list resource {pbs.RESOURCE}", check=False))
    if pbs_hooks.RESOURCE_FLAG in found.get("flag", ""):
        return f"the resource {pbs.RESOURCE} is there already"
    if found:
        qmgr(site, f"set resource {pbs.RESOURCE} flag={pbs_hooks.RESOURCE_FLAG}")
        return f"gave the resource {pbs.RESOURCE} the flag {pbs_hooks.RESOURCE_FLAG}"
    for line in pbs_hooks.resource_lines():
        qmgr(site, line)
    return f"made the resource {pbs.RESOURCE}"


def install_hook(site: Site, hook: Hook) -> str:
    """Make a hook as it is to be; what is so already stays, for each import goes to all nodes."""
    lines = pbs_hooks.hook_lines(hook, read_attributes(site, hook))
    for line in lines:
        qmgr(site, line)
    changed = [
        kind
        for kind, text in (
            (CONFIGURATION, configuration_of(site, hook)),
            (SOURCE, read_text(source_of(hook))),
        )
        if import_part(site, hook, kind, text)
    ]
    return f"the hook {hook.name} is {'as it was' if not lines + changed else 'up to date now'}"


def import_part(site: Site, hook: Hook, kind: str, text: str) -> bool:
    """Give a hook its source or its configuration; False where it has it."""
    if is_same(kind, export(site, hook, kind), text):
        return False
    suffix = ".py" if kind == SOURCE else ".json"
    with tempfile.NamedTemporaryFile("w", suffix=suffix, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        qmgr(site, f"import hook {hook.name} {kind} default {file.name}")
    return True


def is_same(kind: str, found: str, wanted: str) -> bool:
    """Whether PBS has a text: the time until which digests count may be a little older."""
    if kind == SOURCE:
        return found.strip() == wanted.strip()
    if pbs_hooks.without(found, "pins_until") != pbs_hooks.without(wanted, "pins_until"):
        return False
    then = pbs_hooks.without(found).get("pins_until")
    until = pbs_hooks.without(wanted).get("pins_until")
    return then == until or bool(then and until and then - time.time() > (until - time.time()) / 2)


def configuration_of(site: Site, hook: Hook) -> str:
    """The configuration of a hook."""
    if hook.stage == "submit":
        return render_table(site)
    return pbs_hooks.node_config(paths.prefix(), paths.enter_program(), paths.tell_program())


def render_table(site: Site) -> str:
    """The table from the configuration and the store."""
    return pbs_hooks.table(site.config, tables.find_digests(site.config), time.time())


def source_of(hook: Hook) -> str:
    """The file of a stage folder that the hook is."""
    return paths.data(hook.stage, "pbs.py")


def read_attributes(site: Site, hook: Hook) -> Dict[str, str]:
    """A hook's attributes; none where there is no such hook."""
    return pbs_hooks.parse_attributes(qmgr(site, f"list hook {hook.name}", check=False))


def export(site: Site, hook: Hook, kind: str) -> str:
    """What PBS has as a hook's source or configuration; empty for nothing."""
    return qmgr(site, f"export hook {hook.name} {kind} default", check=False)


def qmgr(site: Site, line: str, *, check: bool = True) -> str:
    """Run one line of qmgr(8B); its output.  Raises SiteError where it fails and `check` is set."""
    program = f"{site.place.programs}/bin/qmgr"
    try:
        return run.output([program, "-c", line]).decode(errors="surrogateescape")
    except run.CommandError as error:
        if not check:
            return ""
        reason = run.last_line(error.stderr)
        raise SiteError(f"cannot run `qmgr -c {line!r}`: {reason}", "is pbs_server up?") from error


# ---- checks ----


def check(config_file: Optional[str]) -> List[Finding]:
    """Look at everything that a job with a container needs of this host and of PBS."""
    site = load_site(config_file)
    findings = setup_host.check_programs("pbs")
    if not site.is_server:
        return [*findings, *(check_on_node(site, hook) for hook in site.hooks()[1:])]
    findings.append(check_resource(site))
    for hook in site.hooks():
        findings += check_hook(site, hook)
    return findings


def check_resource(site: Site) -> Finding:
    """The resource must be there, and reach the nodes."""
    found = pbs_hooks.parse_attributes(qmgr(site, f"list resource {pbs.RESOURCE}", check=False))
    if not found:
        return Finding("resource", pbs.RESOURCE, MISSING, "run `hpcwrap setup pbs`")
    if pbs_hooks.RESOURCE_FLAG not in found.get("flag", ""):
        detail = "without flag=m nodes do not hear of it: run `hpcwrap setup pbs`"
        return Finding("resource", pbs.RESOURCE, WRONG, detail)
    return Finding("resource", pbs.RESOURCE, WELL, "-l container=NAME")


def check_hook(site: Site, hook: Hook) -> List[Finding]:
    """A hook's attributes, source and configuration."""
    found = read_attributes(site, hook)
    if not found:
        return [Finding("hook", hook.name, MISSING, "run `hpcwrap setup pbs`")]
    wrong = pbs_hooks.differing(hook, found)
    if not is_same(SOURCE, export(site, hook, SOURCE), read_text(source_of(hook))):
        wrong.append("source")
    findings = []
    if wrong:
        detail = f"{', '.join(wrong)} not as it is to be: run `hpcwrap setup pbs`"
        findings.append(Finding("hook", hook.name, WRONG, detail))
    if not is_same(CONFIGURATION, export(site, hook, CONFIGURATION), configuration_of(site, hook)):
        findings.append(explain_configuration(site, hook))
    return findings or [Finding("hook", hook.name, WELL, found.get("event", ""))]


def explain_configuration(site: Site, hook: Hook) -> Finding:
    """Tell a table that lacks newer images, which does no harm, from a wrong one."""
    if hook.stage != "submit":
        detail = "its configuration names another installation: run `hpcwrap setup pbs`"
        return Finding("hook", hook.name, WRONG, detail)
    found, fresh = (
        {name: {**row, "digests": ()} for name, row in each.get("environments", {}).items()}
        for each in (
            pbs_hooks.without(export(site, hook, CONFIGURATION)),
            pbs_hooks.without(render_table(site)),
        )
    )
    if found == fresh:
        detail = "images were pulled since: `setup pbs --table` has new jobs run them"
        return Finding("table", "digests", NOTE, detail)
    detail = "is not as the settings and environments are: `setup pbs --table`"
    return Finding("table", "environments", WRONG, detail)


def check_on_node(site: Site, hook: Hook) -> Finding:
    """On a node: whether pbs_server has sent the hook."""
    path = f"{site.place.home}/mom_priv/hooks/{hook.name}.PY"
    if not os.path.exists(path):
        detail = f"{path}: run `hpcwrap setup pbs` where pbs_server runs"
        return Finding("hook", hook.name, MISSING, detail)
    if read_text(path).strip() != read_text(source_of(hook)).strip():
        detail = f"{path} is of another hpcwrap: run `hpcwrap setup pbs` where pbs_server runs"
        return Finding("hook", hook.name, WRONG, detail)
    return Finding("hook", hook.name, WELL, path)
