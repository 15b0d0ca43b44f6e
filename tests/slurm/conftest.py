"""One cluster for all Slurm tests; HPCWRAP_TEST_KEEP=1 leaves it up for the next run."""

import pytest
from cluster_site import Clusters, state_of
from site_tools import Site, has_pmix


@pytest.fixture(scope="session")
def site(clusters: Clusters) -> Site:
    """Two nodes with hpcwrap, the demo image and the tiny one in the registry."""
    site = Site(state_of("slurm"))
    clusters.need(site)
    site.alice("scancel", "--user=alice")
    return site


@pytest.fixture(scope="session")
def pmix(site: Site) -> None:
    """For tests of PMIx: Debian's 26.05 was built without it."""
    if not has_pmix(site):
        pytest.skip("this Slurm was built without PMIx")
