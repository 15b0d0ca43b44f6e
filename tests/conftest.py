"""What all tests share: which of them this machine can run, and why not."""

import os
import shutil
from typing import Iterator

import pytest
from cluster_site import Clusters
from hypothesis import settings

# No test is about time (bench/ is).  CI tries the same examples each time: a submission is not to
# fail for what another one brought in; people's runs look further.
settings.register_profile("hpcwrap", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("hpcwrap")

SCHEDULERS = ("slurm", "gridengine", "htcondor", "pbs", "lsf")
MARKERS = ("privileged", "registry", "vm", *SCHEDULERS)

CLUSTER = ("docker-registry", "skopeo", "mksquashfs", "nsenter")
PROGRAMS = {
    "privileged": ("mksquashfs", "unshare"),
    "registry": ("skopeo", "docker-registry", "mksquashfs"),
    "vm": ("qemu-system-x86_64", "mmdebstrap", "mksquashfs", "busybox", "cpio", "depmod"),
    "slurm": ("slurmctld", "slurmd", "munged", *CLUSTER),
    "gridengine": ("sge_qmaster", "sge_execd", "qsub", *CLUSTER),
    "htcondor": ("mmdebstrap", *CLUSTER),
    "pbs": CLUSTER,
    "lsf": CLUSTER,
}
"""What must be installed for the tests with a marker."""

INSTALLED = {
    "pbs": ("HPCWRAP_TEST_PBS", "/opt/pbs", "sbin/pbs_server.bin"),
    "lsf": ("HPCWRAP_TEST_LSF", "/opt/volclava", "sbin/mbatchd"),
}
"""Schedulers that Debian has not: the variable that says where, an example of it, a file there."""


def missing_for(marker: str) -> str:
    """Why tests with this marker cannot run here; empty when they can."""
    if marker not in ("registry",) and os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in PROGRAMS[marker] if not find(name)]
    if lacking:
        return f"needs {', '.join(lacking)} (see tools/packages)"
    return lacks_installation(marker)


def lacks_installation(marker: str) -> str:
    """Why a scheduler that Debian has not cannot be tested; its real one only if that is named."""
    if marker not in INSTALLED:
        return ""
    variable, example, file = INSTALLED[marker]
    place = os.environ.get(variable)
    if place and os.path.exists(os.path.join(place, file)):
        return ""
    found = f"there is none in {place}" if place else f"as {variable}={example}"
    return f"needs an installation of {marker} that {variable} names ({found})"


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """The clusters of the session, one for each scheduler, for all tests that want it."""
    clusters = Clusters()
    yield clusters
    clusters.take_down()


def find(program: str) -> bool:
    """True when a program is installed, in the administrators' directories too."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return shutil.which(program, path=path) is not None


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    """Skip with a reason what cannot run here; on CI nothing may be skipped for this."""
    reasons = {marker: missing_for(marker) for marker in MARKERS}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
