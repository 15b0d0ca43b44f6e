"""Four nodes for the tests here; they use the Slurm tests' site, and tools/cluster's own code."""

import sys
from pathlib import Path

import pytest
from cluster_site import Clusters, state_of

REPOSITORY = Path(__file__).parents[2]
sys.path += [str(REPOSITORY / "tools"), str(REPOSITORY / "tests" / "slurm")]

from fournodes import FourNodes  # noqa: E402  (the path has to be set first)


@pytest.fixture(scope="session")
def four(clusters: Clusters) -> FourNodes:
    """Four nodes with hpcwrap."""
    site = FourNodes(f"{state_of('slurm')}-churn")
    clusters.need(site)
    return site
