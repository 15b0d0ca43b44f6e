"""One cluster for all Slurm tests; HPCWRAP_TEST_KEEP=1 leaves it up for the next run."""

import os
from typing import Iterator

import pytest
from site_tools import Site

STATE = os.environ.get("HPCWRAP_CLUSTER", "/var/tmp/hpcwrap-test-cluster")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Two nodes with hpcwrap, the demo image and the tiny one in the registry."""
    site = Site(STATE)
    if not os.environ.get("HPCWRAP_TEST_KEEP"):
        # A killed run leaves its cluster, and that of another checkout sees the wrong files.
        site.need("cluster", "down")
    fresh = site.tool("cluster", "status").code != 0
    if fresh:
        site.need("cluster", "up")
        for image in ("debian-12", "busybox-1"):
            site.need("image", "build", image)
            site.need("image", "push", image)
    else:
        site.tool("cluster", "exec", "ctl", "scancel", "--user=alice")
    site.need("site")
    yield site
    if not os.environ.get("HPCWRAP_TEST_KEEP"):
        site.need("cluster", "down")
