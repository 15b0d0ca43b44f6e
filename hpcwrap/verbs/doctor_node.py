"""What `hpcwrap doctor` looks at on one node, a function for each thing; they change nothing.

CHECKS is the table.  What a repair can remove is in another, of verbs/leftovers.py.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from typing import Callable, Iterator, NamedTuple, Optional, Tuple

from hpcwrap import config, human, paths
from hpcwrap.errors import HpcwrapError
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding, is_well
from hpcwrap.schedulers import states
from hpcwrap.textfile import read_text
from hpcwrap.verbs import leftover, leftovers, setup, setup_host

OLDEST = (5, 12)
"""Linux with mount_setattr(2), as docs/admins.md has it."""

FILE_SYSTEMS = ("squashfs", "overlay")
SWITCHES = (
    ("user/max_user_namespaces", "0", "0 forbids what ranks join"),
    ("kernel/unprivileged_userns_clone", "0", "0 forbids the scheduler's commands inside"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "1 forbids the commands inside"),
)
"""Files below /proc/sys, the value that is in the way, and of what."""

FULL = 0.95
HELPED = ("htcondor", "lsf")
"""Schedulers whose jobs call the helper."""


class Node(NamedTuple):
    """What the checks need to know: the settings, and the scheduler of this host, if any."""

    config_file: Optional[str]
    settings: config.Settings
    scheduler: str


Check = Callable[[Node], Iterator[Finding]]


def load_node(config_file: Optional[str], scheduler: Optional[str]) -> Node:
    """Find out about this host.  Raises SiteError for settings that cannot be read."""
    settings = config.load_config(config_file).settings
    found = scheduler or ""
    with suppress(HpcwrapError):
        found, _ = states.find(settings, scheduler)
    return Node(config_file, settings, found)


def examine(node: Node) -> Iterator[Finding]:
    """Look at everything; what cannot be looked at is a finding, too."""
    for check in CHECKS:
        try:
            yield from check(node)
        except (HpcwrapError, OSError) as error:
            yield Finding(check.__name__.replace("_", " "), "check", WRONG, str(error))


# ---- the kernel ----


def kernel(_node: Node) -> Iterator[Finding]:
    """Its release, and what must not be forbidden."""
    release = os.uname().release
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    state = WELL if numbers >= OLDEST else WRONG
    yield Finding("kernel", "release", state, f"{release}; {OLDEST[0]}.{OLDEST[1]} or later")
    for name, bad, why in SWITCHES:
        value = read_text(f"/proc/sys/{name}").strip()
        if value == bad:
            yield Finding("kernel", name, WRONG, f"is {value}: {why}")


def file_systems(_node: Node) -> Iterator[Finding]:
    """squashfs and overlay: there, or a module that the first mount loads (modules.dep(5))."""
    there = {line.split()[-1] for line in read_text("/proc/filesystems").splitlines() if line}
    modules = f"/lib/modules/{os.uname().release}"
    listed = read_text(f"{modules}/modules.dep") + read_text(f"{modules}/modules.builtin")
    for name in FILE_SYSTEMS:
        if name in there or f"/{name}.ko" in listed:
            yield Finding("kernel", name, WELL, "there" if name in there else "a module")
        else:
            yield Finding("kernel", name, MISSING, "no image can be mounted: load its module")


def loop_devices(_node: Node) -> Iterator[Finding]:
    """Images are on them."""
    there = os.path.exists("/dev/loop-control")
    detail = "there" if there else "no image can be mounted: load the module loop"
    yield Finding("kernel", "/dev/loop-control", WELL if there else MISSING, detail)


# ---- hpcwrap ----


def programs(node: Node) -> Iterator[Finding]:
    """The compiled parts."""
    yield from setup_host.check_programs(node.scheduler or "SCHEDULER")


def environments(node: Node) -> Iterator[Finding]:
    """Those that a job could name and not get."""
    loaded = config.load_config(node.config_file)
    for name, error in loaded.problems().items():
        yield Finding("environments.d", name, WRONG, error.sentence())
    yield Finding("environments.d", "environments", WELL, f"{len(loaded.environments)}")


def store(node: Node) -> Iterator[Finding]:
    """Whether store and cache answer, and have room."""
    for kind, path in (("store", node.settings.store), ("cache", node.settings.cache)):
        if path:
            yield look_at_store(kind, path)


def look_at_store(kind: str, path: str) -> Finding:
    """One directory of images."""
    try:
        os.listdir(path)
        space = os.statvfs(path)
    except OSError as error:
        hint = "is it mounted? `hpcwrap pull` makes it" if kind == "store" else "made at first use"
        return Finding(
            kind, path, MISSING if kind == "store" else NOTE, f"{error.strerror}: {hint}"
        )
    free = human.format_size(space.f_bavail * space.f_frsize)
    full = space.f_blocks and 1 - space.f_bavail / space.f_blocks > FULL
    return Finding(kind, path, NOTE if full else WELL, f"{free} free")


def hooks(node: Node) -> Iterator[Finding]:
    """What `hpcwrap setup SCHEDULER --check` finds, but for what is well."""
    if not node.scheduler or not setup.is_there(node.scheduler):
        yield Finding("scheduler", "hooks", NOTE, "no scheduler is on this host")
        return
    found = setup.load(node.scheduler).check(node.config_file)
    bad = [finding for finding in found if finding.state in (MISSING, WRONG)]
    yield from bad
    if not bad:
        yield Finding(
            node.scheduler, "hooks", WELL, f"`setup {node.scheduler} --check` finds nothing"
        )


def helper(node: Node) -> Iterator[Finding]:
    """Whether the helper listens, where jobs need it."""
    if node.scheduler not in HELPED:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
            talk.connect(paths.HELPER_SOCKET)
    except OSError as error:
        detail = f"{paths.HELPER_SOCKET}: {error.strerror}: start hpcwrap-helper.socket"
        yield Finding("helper", "socket", MISSING, detail)
        return
    yield Finding("helper", "socket", WELL, paths.HELPER_SOCKET)


# ---- leftovers ----


def leftovers_of_jobs(node: Node) -> Iterator[Finding]:
    """What has outlived its job; `hpcwrap doctor --repair` removes it."""
    if os.geteuid() != 0:
        yield Finding("leftovers", "jobs", NOTE, "only root can look")
        return
    left = leftover.Node(node.settings, node.scheduler)
    found = [each.finding for each in leftovers.find(left)]
    yield from found
    if is_well(found):
        yield Finding("leftovers", "jobs", WELL, f"{len(left.jobs)} here, nothing of others")


CHECKS: Tuple[Check, ...] = (
    *(kernel, file_systems, loop_devices, programs, environments),
    *(store, hooks, helper, leftovers_of_jobs),
)
"""In the order in which one would look."""
