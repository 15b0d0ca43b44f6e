"""tools/cluster leaves the machine as it found it."""

import glob
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Dict

import pytest
from site_tools import TOOLS

pytestmark = pytest.mark.slurm

CLUSTER = str(TOOLS / "cluster")


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def machine() -> Dict[str, object]:
    """What a cluster could leave behind, as it is now."""
    devices = glob.glob("/sys/block/loop*/loop/backing_file")
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "loop devices": sorted(Path(device).read_text() for device in devices),
        "named network namespaces": output("ip", "netns"),
        "links": [line.split(":")[1] for line in output("ip", "-o", "link").splitlines()],
        "cgroups": sorted(glob.glob("/sys/fs/cgroup/*/*/")),
        "namespaces": sorted(set(namespaces())),
        "files": sorted(os.listdir("/run")),
        "listening": output("ss", "-Hltn"),
    }


def is_as(before: Dict[str, object], limit: float = 5.0) -> bool:
    """Compare; the kernel takes a moment to free what a dead process had."""
    until = time.monotonic() + limit
    while machine() != before and time.monotonic() < until:
        time.sleep(0.1)
    now = machine()
    for what, found in before.items():
        assert now[what] == found, what
    return True


def namespaces() -> "list[str]":
    """Network namespaces of all processes."""
    found = []
    for link in glob.glob("/proc/[0-9]*/ns/net"):
        try:
            found.append(os.readlink(link))
        except OSError:
            continue
    return found


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "cluster")


def test_down_leaves_nothing(state: str) -> None:
    before = machine()
    output(CLUSTER, "--state", state, "up", "--nodes", "1")
    try:
        output(CLUSTER, "--state", state, "as", "alice", "srun", "hostname")
        assert machine() != before
    finally:
        output(CLUSTER, "--state", state, "down")
    output(CLUSTER, "--state", state, "down")
    assert is_as(before)
    assert not os.path.exists(state)


@pytest.mark.parametrize("delay", [0.03, 0.08, 0.15])
def test_down_mends_an_up_that_was_killed(state: str, delay: float) -> None:
    before = machine()
    child = subprocess.Popen([CLUSTER, "--state", state, "up"], stdout=subprocess.DEVNULL)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    output(CLUSTER, "--state", state, "down")
    assert is_as(before)


def test_nothing_listens_outside(state: str) -> None:
    """The registry and Slurm's daemons listen inside the nodes' own network only."""
    before = output("ss", "-Hltn")
    output(CLUSTER, "--state", state, "up", "--nodes", "1")
    try:
        assert output("ss", "-Hltn") == before
        inside = output(CLUSTER, "--state", state, "exec", "ctl", "ip", "-o", "-4", "address")
        addresses = [line.split()[3] for line in inside.splitlines()]
        assert sorted(addresses) == ["10.77.0.1/24", "127.0.0.1/8"]
    finally:
        output(CLUSTER, "--state", state, "down")
