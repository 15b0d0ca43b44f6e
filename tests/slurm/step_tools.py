"""Steps in another container than their job's, with prologs as slow as where they pull."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from site_tools import Site
from slurm_conf import script

OTHER = "srun --container=busybox-1"
PATIENCE, SLOW = 2, 6
"""Seconds that the plugin waits, and that the prolog takes."""

PLUGSTACK = "/etc/slurm/plugstack.conf"
PROLOG = "/opt/hpcwrap/share/hpcwrap/prolog/slurm.sh"
SAID = "/tmp/slow-step"

BEGINS = "stand_beside_step$"
ENDS = "^code=$?$"
SAY = (
    f"echo job $SLURM_JOB_ID >{SAID}; "
    f"/usr/bin/cat /proc/self/cgroup /proc/self/oom_score_adj >>{SAID}; /usr/bin/sleep {SLOW}"
)
CHANGE = f"""
cp -a {PLUGSTACK} {PLUGSTACK}.kept
cp -a {PROLOG} {PROLOG}.kept
sed -i '/spank_hpcwrap/s/$/ patience={PATIENCE}/' {PLUGSTACK}
sed -i -e 's,|| {BEGINS},|| {{ stand_beside_step; {SAY}; }},' \\
    -e 's,{ENDS},&; [ -z "${{HPCWRAP_STEP:-}}" ] || echo "code $code" >>{SAID},' {PROLOG}
grep -q {SAID} {PROLOG}
"""
BACK = f"mv {PLUGSTACK}.kept {PLUGSTACK}; mv {PROLOG}.kept {PROLOG}"


@contextmanager
def slow_prologs(site: Site) -> Iterator[None]:
    """Steps' prologs are too slow for the plugin; in SAID: where they are, and how they end."""
    script(site, "ctl", CHANGE)
    try:
        yield
    finally:
        script(site, "ctl", BACK)


def ends_late(site: Site, node: str) -> str:
    """Have a step on a node whose prolog goes on after the job's end; what that said at its end."""
    script(site, node, f"rm -f {SAID}")
    with slow_prologs(site):
        words = f"salloc -Q -n1 -w{node} {OTHER} touch ran-late"
        ran = site.alice("bash", "-c", words)
        assert site.eventually(lambda: "code" in site.root(node, "cat", SAID).stdout)
    assert ran.stderr.count(f"after {PATIENCE} s the node is still at it") == 1
    assert site.alice("ls", "ran-late").code != 0
    return script(site, node, f"cat {SAID}; rm {SAID}")
