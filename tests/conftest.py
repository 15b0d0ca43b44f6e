"""What all tests share: which of them this machine can run, and why not."""

import os
import shutil

import pytest
from hypothesis import settings

# No test is about time (bench/ is).  CI tries the same examples each time: a submission is not to
# fail for what another one brought in; people's runs look further.
settings.register_profile("hpcwrap", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("hpcwrap")

MARKERS = ("privileged", "registry", "slurm", "vm")


def missing_for(marker: str) -> str:
    """Why tests with this marker cannot run here; empty when they can."""
    if marker in ("privileged", "slurm", "vm") and os.geteuid() != 0:
        return "needs root"
    programs = {
        "privileged": ["mksquashfs", "unshare"],
        "registry": ["skopeo", "docker-registry", "mksquashfs"],
        "slurm": ["slurmctld", "slurmd", "munged", "docker-registry", "skopeo", "mksquashfs"],
        "vm": ["qemu-system-x86_64", "mmdebstrap", "mksquashfs", "busybox", "cpio", "depmod"],
    }
    lacking = [name for name in programs[marker] if not find(name)]
    return f"needs {', '.join(lacking)} (see tools/packages)" if lacking else ""


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
