"""The suite's HTCondor, for what only it has."""

from __future__ import annotations

import os
import sys

import pytest
from cluster_site import Clusters, state_of

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "schedulers"))

from driver_htcondor import HtCondor


@pytest.fixture(scope="session")
def pool(clusters: Clusters) -> HtCondor:
    """Two nodes with a startd, and a submit host."""
    made = HtCondor(state_of("htcondor"))
    clusters.need(made)
    made.prepare()
    return made
