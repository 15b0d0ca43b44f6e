"""A short churn: the same as `make churn`, with fewer jobs."""

from __future__ import annotations

import os

import pytest
from churn import Churn, tables
from fournodes import FourNodes

pytestmark = pytest.mark.slurm

JOBS = 90
SEED = int(os.environ.get("HPCWRAP_CHURN_SEED", "6"))


# Longer than the churn's own patience, whose report says what was waited for.
@pytest.mark.timeout(800)
def test_nothing_is_left_after_a_churn(four: FourNodes) -> None:
    report = Churn(four, SEED, JOBS).run()
    print(tables(report))
    assert report.is_well, tables(report)
    seen = ("record", "pin", "image mount", "process", "lease", "loop device", "cgroup")
    assert min(report.peak[kind] for kind in seen) > 0, "the census sees nothing"
    assert {"red", "blue", "HOST"} <= set(report.marks)
