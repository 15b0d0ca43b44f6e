"""The suite's cluster of PBS, for what only PBS has."""

import sys
from pathlib import Path

import pytest
from cluster_site import Clusters, state_of

sys.path.append(str(Path(__file__).parents[1] / "schedulers"))

from driver_pbs import Pbs


@pytest.fixture(scope="session")
def pbs(clusters: Clusters) -> Pbs:
    """Two nodes with hpcwrap."""
    made = Pbs(state_of("pbs"))
    clusters.need(made)
    made.prepare()
    return made
