"""The suite's HTCondor, for what only it has."""

from __future__ import annotations

import sys

import pytest
from cluster_site import REPOSITORY, TOOLS, Clusters, state_of

sys.path[:0] = [str(REPOSITORY / "tests" / "schedulers"), str(TOOLS)]

from driver_htcondor import HtCondor  # noqa: E402  (the path has to be set first)


@pytest.fixture(scope="session")
def pool(clusters: Clusters) -> HtCondor:
    """Two nodes with a startd, and a submit host."""
    made = HtCondor(state_of("htcondor"))
    clusters.need(made)
    made.prepare()
    return made
