"""slurm.conf changed for the tests of a module: daemons start anew, or only read it again."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Dict, Iterator, Sequence

from site_tools import NODES, Site

ETC = "/etc/slurm"
CONF = f"{ETC}/slurm.conf"

REMOVE_CGROUPS = """
for top in /sys/fs/cgroup/*/slurm_$(uname -n); do
    if [ -d "$top" ]; then find "$top" -depth -type d -exec rmdir {} ';'; fi
done
"""
"""Slurm leaves its own when its daemons end, and the tree is the machine's."""


@contextmanager
def switched_on(site: Site, lines: Sequence[str], files: Dict[str, str]) -> Iterator[Site]:
    """More lines in slurm.conf, of which the last of a key counts, and files beside it.

    A file that ends in `+` is one that is there, and is added to.
    """
    kept = f"{ETC}.kept"
    script(site, "ctl", f"rm -rf {kept}; cp -a {ETC} {kept}")
    for name, text in {"slurm.conf+": "".join(f"{line}\n" for line in lines), **files}.items():
        words = ["tee", "-a"] if name.endswith("+") else ["tee"]
        site.need("cluster", "exec", "ctl", *words, f"{ETC}/{name.rstrip('+')}", stdin=text)
    try:
        site.need("cluster", "restart")
        yield site
    finally:
        script(site, "ctl", f"rm -rf {ETC}/*; cp -a {kept}/. {ETC}; rm -r {kept}")
        site.need("cluster", "restart")
        for node in NODES:
            script(site, node, REMOVE_CGROUPS)


@contextmanager
def configured(site: Site, change: str) -> Iterator[None]:
    """slurm.conf changed by a command of sed's: for keys that need no daemon to start anew."""
    site.need("cluster", "exec", "ctl", "cp", CONF, f"{CONF}.kept")
    site.need("cluster", "exec", "ctl", "sed", "-i", change, CONF)
    site.need("cluster", "exec", "ctl", "scontrol", "reconfigure")
    time.sleep(1)  # slurmd reads it after scontrol has had its answer
    try:
        yield
    finally:
        site.need("cluster", "exec", "ctl", "mv", f"{CONF}.kept", CONF)
        site.need("cluster", "exec", "ctl", "scontrol", "reconfigure")


def script(site: Site, node: str, text: str) -> str:
    """Run a script of root's on a node, which must succeed; its stdout."""
    return site.need("cluster", "exec", node, "sh", "-eu", stdin=text)
