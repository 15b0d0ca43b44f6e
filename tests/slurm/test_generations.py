"""The release of Slurm that the cluster runs, and the SPANK plugin that was built for it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Iterator

import pytest
from site_tools import RELEASE, Site

pytestmark = pytest.mark.slurm

PLUGIN = "/opt/hpcwrap/lib/hpcwrap/spank_hpcwrap.so"
NATIVE = "/opt/hpcwrap/share/hpcwrap/native"
OLDER = "20.02"
BUILD_FOR_OLDER = f"""
set -e
mkdir -p /tmp/older
cp -r /usr/include/slurm /tmp/older
version=/tmp/older/slurm/slurm_version.h
sed -i 's/\\(#define SLURM_VERSION_NUMBER\\) .*/\\1 0x140200/' $version
make -s -C {NATIVE} BUILD=/tmp/older/build SLURM_INCLUDE=/tmp/older plugin
"""


def check(site: Site) -> tuple[int, str]:
    """What `hpcwrap setup slurm --check` says of the plugin, on the submit host."""
    ran = site.root("ctl", "hpcwrap", "setup", "slurm", "--check")
    said = [line for line in ran.stdout.splitlines() if "SPANK plugin" in line]
    return ran.code, "\n".join(said)


@contextmanager
def older_plugin(site: Site) -> Iterator[None]:
    """The submit host's plugin is one for another release."""
    site.need("cluster", "exec", "ctl", "sh", stdin=BUILD_FOR_OLDER)
    other = "/tmp/older/build/spank_hpcwrap.so"
    site.need("cluster", "exec", "ctl", "mount", "--bind", other, PLUGIN)
    yield
    site.need("cluster", "exec", "ctl", "umount", PLUGIN)
    site.need("cluster", "exec", "ctl", "rm", "-r", "/tmp/older")


def test_the_daemons_are_of_the_release_asked_for(site: Site) -> None:
    for node, daemon in (("ctl", "slurmctld"), ("n1", "slurmd")):
        said = site.root(node, daemon, "-V").stdout
        assert re.search(r"\d+\.\d+", said).group() == RELEASE  # type: ignore[union-attr]


def test_the_plugin_is_built_for_it(site: Site) -> None:
    code, said = check(site)
    assert code == 0
    assert said.endswith(f"{PLUGIN} for Slurm {RELEASE}")


def test_a_plugin_of_another_release_stops_jobs_and_is_found(site: Site) -> None:
    with older_plugin(site):
        ran = site.alice("srun", "--container=busybox-1", "/bin/sh", "-c", "echo ran")
        code, said = check(site)
    assert ran.code != 0
    assert "ran" not in ran.stdout
    assert code != 0
    assert f"built for Slurm {OLDER}, but {RELEASE} is here: run `hpcwrap setup slurm`" in said
