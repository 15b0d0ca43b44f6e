"""The suite runs once for each scheduler that has a driver."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Iterator, List

import pytest
from cluster_site import NODES, Clusters, state_of
from driver import Driver

SCHEDULERS = ("slurm", "gridengine", "htcondor", "pbs", "lsf")


def drivers() -> List[object]:
    """The schedulers, each with the mark that says what it needs."""
    there = [name for name in SCHEDULERS if importlib.util.find_spec(f"driver_{name}")]
    return [pytest.param(name, marks=getattr(pytest.mark, name)) for name in there]


@pytest.fixture(scope="session", params=drivers())
def driver(request: pytest.FixtureRequest, clusters: Clusters) -> Driver:
    """One scheduler and its cluster, with the suite's environments."""
    module = importlib.import_module(f"driver_{request.param}")
    made: Driver = module.DRIVER(state_of(request.param))
    clusters.need(made)
    made.foreign = [path for node in NODES for path in made.cgroups(node)]
    made.prepare()
    return made


@pytest.fixture(autouse=True)
def skip_what_it_cannot(request: pytest.FixtureRequest) -> None:
    """Skip tests marked with a feature that the driver's scheduler does not have."""
    mark = request.node.get_closest_marker("feature")
    if mark is None or "driver" not in request.fixturenames:
        return
    made: Driver = request.getfixturevalue("driver")
    reason = made.CANNOT.get(mark.args[0])
    if reason:
        pytest.skip(f"{made.NAME}: {mark.args[0]}: {reason}")


@pytest.fixture
def in_service(driver: Driver) -> Iterator[None]:
    """Whatever a test breaks: every node and queue takes jobs afterwards."""
    yield
    assert driver.trouble() == ""
