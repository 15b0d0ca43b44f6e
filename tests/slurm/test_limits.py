"""Limits under Slurm: rlimits of the site's settings in scripts, steps and `hpcwrap run`."""

from typing import Dict, Iterator, Tuple

import pytest
from site_tools import Site

pytestmark = pytest.mark.slurm

LIMITED = "--container=limited"
ASK = "cat /proc/self/limits"
NAMES = {"Max open files": "nofile", "Max locked memory": "memlock", "Max stack size": "stack"}


@pytest.fixture(scope="module", autouse=True)
def environment(site: Site) -> Iterator[None]:
    """An environment that names two limits, and leaves all others to Slurm."""
    site.add_environment("limited", "base: busybox-1\nrlimits: [memlock=1m:2m, nofile=2000:3000]\n")
    yield
    site.remove_environment("limited")
    site.need("cluster", "exec", "ctl", "hpcwrap", "setup", "slurm", "--table")


def limits(text: str) -> Dict[str, Tuple[str, ...]]:
    """Soft and hard limit by name, of the text of /proc/PID/limits."""
    rows = [(line[:26].strip(), tuple(line[26:].split()[:2])) for line in text.splitlines()]
    return {NAMES[name]: values for name, values in rows if name in NAMES}


@pytest.mark.parametrize("start", ["", "srun "], ids=["script", "step"])
def test_named_limits_are_the_settings_and_others_slurms(site: Site, start: str) -> None:
    script = f"#!/bin/sh\n{start}{ASK}\n"
    plain = limits(site.batch(script, "--container=busybox-1").output)
    limited = limits(site.batch(script, LIMITED).output)
    assert limited == {
        "memlock": (str(1 << 20), str(2 << 20)),
        "nofile": ("2000", "3000"),
        "stack": plain["stack"],
    }
    assert plain["memlock"] != limited["memlock"]
    assert plain["nofile"] != limited["nofile"]


def test_limits_of_the_submit_host_do_not_come_over_ours(site: Site) -> None:
    """slurmstepd sets soft limits that sbatch and srun saw (PropagateResourceLimits)."""
    command = f"ulimit -S -n 100; ulimit -S -s 4096; exec srun -n2 {LIMITED} /bin/sh -c '{ASK}'"
    ran = site.alice("sh", "-c", command)
    assert ran.stdout.count("Max open files") == 2
    assert limits(ran.stdout)["nofile"] == ("2000", "3000")
    assert limits(ran.stdout)["stack"][0] == str(4096 << 10)


def test_a_user_may_lower_a_limit_for_a_step_inside(site: Site) -> None:
    job = site.batch(f"#!/bin/sh\nulimit -S -n 500\n{ASK}\n", LIMITED)
    assert limits(job.output)["nofile"] == ("500", "3000")


def test_hpcwrap_run_sets_them(site: Site) -> None:
    words = ("run", "--user", "alice", "limited", "--", "/bin/sh", "-c", ASK)
    found = limits(site.root("n1", "hpcwrap", *words).stdout)
    assert found["memlock"] == (str(1 << 20), str(2 << 20))
    assert found["nofile"] == ("2000", "3000")


def test_what_the_kernel_refuses_ends_the_job_with_a_sentence(site: Site) -> None:
    site.add_environment("toomany", "base: busybox-1\nrlimits: [nofile=unlimited]\n")
    try:
        job = site.batch("#!/bin/sh\necho ran\n", "--container=toomany")
        assert job.code == 1
        assert "cannot raise the limit nofile" in job.output
        assert "\nran" not in job.output
        assert site.node_states() == {"idle"}
        words = ("run", "--user", "alice", "toomany", "--", "/bin/sh", "-c", "echo ran")
        ran = site.root("n1", "hpcwrap", *words)
        assert (ran.code, ran.stdout) == (125, "")
        assert "cannot set the limit nofile=unlimited" in ran.stderr
    finally:
        site.remove_environment("toomany")
