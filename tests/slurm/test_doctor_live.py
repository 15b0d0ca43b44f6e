"""`hpcwrap doctor` finds what is wrong on real nodes."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterator, List

import pytest
from site_tools import Site

pytestmark = pytest.mark.slurm

LOST = "/run/hpcwrap/jobs/999999"


def doctor(site: Site, node: str, *words: str) -> List[Dict[str, Any]]:
    """What is missing or wrong."""
    found = json.loads(site.root(node, "hpcwrap", "doctor", "--json", *words).stdout)
    # The nodes of other clusters have the same names, and share the machine's tree of cgroups.
    return [
        each for each in found if each["state"] in ("missing", "wrong") and each["what"] != "cgroup"
    ]


@pytest.fixture(autouse=True)
def current_table(site: Site) -> None:
    """n1 has slurmctld, and so a table; other tests' environments are in ctl's alone."""
    site.need("cluster", "exec", "n1", "hpcwrap", "setup", "slurm", "--table")


@pytest.fixture
def drained(site: Site) -> Iterator[str]:
    """A node that takes no jobs."""
    site.root("ctl", "scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=bad disk")
    yield "n2"
    site.root("ctl", "scontrol", "update", "NodeName=n2", "State=RESUME")
    assert site.eventually(lambda: site.node_states() == {"idle"})


def test_a_drained_node_and_why(site: Site, drained: str) -> None:
    (found,) = doctor(site, "ctl", "--cluster")
    assert found["file"] == drained
    assert "bad disk" in found["detail"]
    told = site.alice("hpcwrap", "status", "--nodes").stdout
    assert [line.split()[:2] for line in told.splitlines()[1:]] == [["n1", "up"], ["n2", "drained"]]


@pytest.fixture
def lost(site: Site) -> Iterator[None]:
    """The directory of a job whose epilog never ran, with a pin in it."""
    site.root("n1", "mkdir", "-p", f"{LOST}/ns")
    site.root("n1", "touch", f"{LOST}/record.json")
    yield
    site.root("n1", "rm", "-rf", LOST)


@pytest.mark.usefixtures("lost")
def test_what_an_epilog_did_not_take(site: Site) -> None:
    (found,) = doctor(site, "n1")
    assert (found["file"], found["what"]) == (LOST, "job")
    assert "slurm does not know it any more" in found["detail"]


@pytest.mark.usefixtures("lost")
def test_a_repair_takes_it_and_no_job_that_runs(site: Site) -> None:
    """Elements of an array have names of their own in squeue, and their numbers on the nodes."""
    waits = (
        "#!/bin/sh\ntouch started-$SLURM_ARRAY_TASK_ID\nwhile [ ! -e over ]; do sleep 0.1; done\n"
    )
    site.alice("rm", "-f", "over", "started-1", "started-2")
    array = site.submit(waits, "--container=busybox-1", "--array=1-2", "--nodelist=n1").stdout
    try:
        assert site.eventually(lambda: "started-2" in site.alice("ls").stdout, 60)
        told = json.loads(site.root("n1", "hpcwrap", "doctor", "--repair", "--json").stdout)
        # Pulls of other tests leave locks in the store, which go as well.
        ended = [each["file"] for each in told if each["what"] == "job"]
        assert ended == [LOST]
        assert [each["state"] for each in told if each["file"] == LOST] == ["repaired"]
        assert len(site.root("n1", "ls", "/run/hpcwrap/jobs").stdout.split()) == 2
        assert doctor(site, "n1") == []
    finally:
        site.alice("touch", "over")
    assert site.eventually(lambda: site.has_ended(array.strip()), 60)
    assert "ExitCode=0:0" in site.job(array.strip())
    assert site.root("n1", "ls", "/run/hpcwrap/jobs").stdout == ""


def test_a_store_that_is_gone(site: Site) -> None:
    site.add_settings("gone", "store: /no/such/store\n")
    try:
        wheres = [each["file"] for each in doctor(site, "n1")]
    finally:
        site.remove_settings("gone")
    assert wheres == ["store"]
