"""`hpcwrap status`, `top` and `doctor` on any scheduler; after the suite, whose jobs go first."""

from __future__ import annotations

import json
from typing import Any, Dict

from cluster_site import NODES
from driver import Driver


def status(driver: Driver) -> Dict[str, Any]:
    """What a user is told, as data."""
    words = ("hpcwrap", "status", "--json", "--scheduler", driver.NAME)
    found: Dict[str, Any] = json.loads(driver.alice(*words).stdout)
    return found


def test_a_job_from_its_begin_to_its_end(driver: Driver) -> None:
    submission, node, mark = driver.begin()
    assert_top_shows_it(driver, node)
    told = status(driver)
    number = submission.id.partition(".")[0]
    (job,) = [each for each in told["jobs"] if each["id"].partition(".")[0] == number]
    assert (job["user"], job["state"], job["nodes"]) == ("alice", "running", [node])
    if "container in status" not in driver.CANNOT:
        assert job["container"].partition("@")[0] == "busybox-1"
    assert {each["name"]: each["state"] for each in told["nodes"]} == dict.fromkeys(NODES, "up")
    driver.alice("rm", mark)
    assert driver.wait(submission).code == 0
    ids = [each["id"] for each in status(driver)["jobs"]]
    assert submission.id not in ids


def assert_top_shows_it(driver: Driver, node: str) -> None:
    """Root on the node sees the job's processes."""
    jobs = json.loads(driver.root(node, "hpcwrap", "top", "--json").stdout)
    (job,) = [each for each in jobs if each["user"] == "alice"]
    assert job["container"].startswith("busybox-1@sha256:")
    assert job["processes"] >= 1
    assert job["memory"] > 0


def test_the_doctor_finds_healthy_nodes(driver: Driver) -> None:
    whole = driver.alice("hpcwrap", "doctor", "--cluster", "--scheduler", driver.NAME)
    assert (whole.code, whole.stdout) == (0, "looked at 2: 2 well (--all shows them)\n")
    for node in NODES:
        words = ("hpcwrap", "doctor", "--json", "--scheduler", driver.NAME)
        found = json.loads(driver.root(node, *words).stdout)
        bad = [each for each in found if each["state"] in ("missing", "wrong")]
        assert [each for each in bad if is_ours(each, driver)] == []


def is_ours(finding: Dict[str, str], driver: Driver) -> bool:
    """Not what the suite does on purpose, nor what other clusters do.

    Drivers take environments away behind the scheduler's back; and the nodes of other clusters have
    the same names, and share the machine's tree of cgroups.
    """
    if finding["what"] == "cgroup":
        is_own = f"/hpcwrap-{driver.NAME}-" in finding["file"]
        return is_own and finding["file"] not in driver.foreign
    return finding["file"] not in ("table", "esub")


def test_people_see_tables(driver: Driver) -> None:
    words = ("hpcwrap", "status", "--scheduler", driver.NAME)
    headings = driver.alice(*words).stdout.splitlines()[0]
    assert headings.split()[:4] == ["JOB", "USER", "STATE", "CONTAINER"]
    lines = driver.alice(*words, "--nodes").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(NODES)
