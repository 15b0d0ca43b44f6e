"""What the tests of LSF share: an installation, a submission, and the suite's cluster."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Iterator

import pytest
from cluster_site import Clusters, state_of

sys.path.append(str(Path(__file__).parents[1] / "schedulers"))

from driver_lsf import Lsf
from installation import Installation, install


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """In a directory that users can read, which pytest's own are not."""
    prefix = Path(tempfile.mkdtemp(prefix="hpcwrap-lsf-"))
    prefix.chmod(0o755)
    yield install(prefix)
    shutil.rmtree(prefix)


@pytest.fixture(scope="session")
def lsf(clusters: Clusters) -> Lsf:
    """Two nodes with hpcwrap."""
    made = Lsf(state_of("lsf"))
    clusters.need(made)
    made.prepare()
    return made
