"""The suite's cluster of Grid Engine, for what only Grid Engine has."""

import sys
from pathlib import Path
from typing import Iterator

import pytest
from cluster_site import Clusters, state_of

sys.path.append(str(Path(__file__).parents[1] / "schedulers"))

from driver_gridengine import GridEngine

QUEUES = """\
set -e
qconf -sq all.q >/tmp/queue
while read -r name mode shell; do
    qconf -sq $name >/dev/null 2>&1 && continue
    sed -i -e "s/^qname .*/qname $name/" -e "s/^shell_start_mode .*/shell_start_mode $mode/" \\
        -e "s#^shell .*#shell $shell#" /tmp/queue
    qconf -Aq /tmp/queue
done <<END
posix.q posix_compliant /bin/csh
stdin.q script_from_stdin /bin/sh
END
"""
"""Queues that start scripts in other ways, as the shell start modes of queue_conf(5)."""


@pytest.fixture(scope="session")
def grid(clusters: Clusters) -> GridEngine:
    """Two nodes with hpcwrap."""
    made = GridEngine(state_of("gridengine"))
    clusters.need(made)
    made.prepare()
    assert made.root("ctl", "sh", "-s", stdin=QUEUES).code == 0
    return made


@pytest.fixture
def well(grid: GridEngine) -> Iterator[None]:
    """Whatever a test breaks: afterwards every queue takes jobs, and no job is in the state E."""
    yield
    grid.root("ctl", "qmod", "-cq", "*")
    grid.root("ctl", "qdel", "-u", "alice")
    assert grid.eventually(lambda: grid.trouble() == "", 30)
