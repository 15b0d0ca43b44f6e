"""`mpi: host` on a real cluster: Debian's Open MPI of two releases, in images of both."""

from __future__ import annotations

from typing import Iterator

import pytest
from mpi_images import add_images, compile_program, found_each_other, srun
from site_tools import NODES, Ran, Site, own_packages

pytestmark = pytest.mark.slurm

HOME = "/usr/lib/x86_64-linux-gnu"
TREE = "/run/debian-13"
DROP_IN = "mpi-libraries"


@pytest.fixture(name="hello", scope="module")
def images_and_program(site: Site) -> str:
    """The images of Debian 12 and 13, and a program for the first one's Open MPI."""
    add_images(site, "debian-12", "openmpi-13")
    return compile_program(site, "openmpi")


@pytest.fixture(name="newer", scope="module")
def host_with_newer_mpi(site: Site, hello: str) -> Iterator[None]:
    """Nodes on which the site has Debian 13's Open MPI, in a directory of its own."""
    site.need("cluster", "exec", "ctl", "hpcwrap", "pull", "openmpi-13")
    script = (
        "import glob, json;"
        "files = glob.glob('/shared/hpcwrap/store/images/*.json');"
        "found = [f for f in files if 'openmpi-13' in open(f).read()];"
        "print(found[0][:-len('.json')] + '.sqsh')"
    )
    image = site.need("cluster", "exec", "ctl", "python3", "-c", script).strip()
    for node in NODES:
        site.need("cluster", "exec", node, "mkdir", "-p", TREE)
        site.need("cluster", "exec", node, "mount", "-o", "loop,ro", image, TREE)
    site.add_settings(DROP_IN, f"mpi_libraries: [{TREE}{HOME}/libmpi.so.40]\n")
    yield
    site.remove_settings(DROP_IN)
    for node in NODES:
        site.need("cluster", "exec", node, "umount", TREE)


def refused(site: Site, ran: Ran, sentence: str) -> bool:
    """True when the job said so, ran nothing, and cost no node."""
    assert ran.code != 0
    assert "rank" not in ran.stdout
    assert site.node_states() == {"idle"} or site.eventually(lambda: site.node_states() == {"idle"})
    return sentence in ran.stderr


@own_packages
def test_programs_of_the_image_run_with_the_hosts_library(site: Site, hello: str) -> None:
    assert found_each_other(srun(site, "debian-12-host", "pmix", "mpi-hello"))
    files = [f"{place}{HOME}/libmpi.so.40" for place in ("", "/.host")]
    devices = ["stat", "-L", "-c", "%d:%i", *files]
    inside, host = srun(site, "debian-12-host", "none", *devices, ranks=2).stdout.split()[:2]
    assert inside == host
    inside, host = srun(site, "debian-12", "none", *devices, ranks=2).stdout.split()[:2]
    assert inside != host


@own_packages
def test_modules_texts_and_settings_of_the_host_come_along(site: Site, hello: str) -> None:
    places = [f"{HOME}/openmpi/lib/openmpi3", "/usr/share/openmpi", "/etc/openmpi"]
    ran = srun(site, "debian-12-host", "none", "cat", "/proc/self/mountinfo", ranks=2)
    mounted = {line.split()[4]: line.split()[5] for line in ran.stdout.splitlines()}
    assert {place: mounted[place].split(",")[:3] for place in places} == {
        place: ["ro", "nosuid", "nodev"] for place in places
    }


@own_packages
def test_a_host_that_is_older_than_the_image_is_refused(site: Site, hello: str) -> None:
    assert refused(
        site,
        srun(site, "openmpi-13-host", "pmix", hello),
        "cannot use the host's Open MPI in place of the image's "
        "/lib/x86_64-linux-gnu/libmpi.so.40: the host's is older "
        "(libmpi.so.40.30.4, the image's is libmpi.so.40.40.7: 30 < 40) "
        "(say `mpi: image`, or use an image that fits)",
    )


def test_a_host_that_needs_a_newer_glibc_is_refused(site: Site, hello: str, newer: None) -> None:
    assert refused(
        site,
        srun(site, "debian-12-host", "none", hello),
        "cannot use the host's libraries for Open MPI in this image: "
        "libmpi.so.40.40.7 needs glibc 2.38, the image has 2.36",
    )


def test_a_program_for_an_older_open_mpi_runs_with_the_hosts_newer_one(
    site: Site, hello: str, newer: None, pmix: None
) -> None:
    assert found_each_other(srun(site, "openmpi-13-host", "pmix", hello))


def test_an_image_without_mpi_is_refused(site: Site, hello: str) -> None:
    site.add_environment("busybox-host", "image: registry:5000/busybox-1:latest\nmpi: host\n")
    said = "cannot use the host's MPI, which is Open MPI"
    ran = site.alice("srun", "--container=busybox-host", "true")
    assert refused(site, ran, said)
    assert "the image has no MPI library (say `mpi: image`" in ran.stderr
