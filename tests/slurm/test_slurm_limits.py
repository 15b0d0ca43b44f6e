"""Limits under Slurm: rlimits of the site's settings in scripts, steps and `hpcwrap run`."""

import signal
from typing import Dict, Iterator, Tuple

import pytest
from site_tools import Ran, Site

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


# ---- hpcwrap run: a cgroup of its own ----

FILL = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null"


def run(site: Site, *words: str, node: str = "n1") -> Ran:
    """`hpcwrap run` of a script as alice."""
    *options, script = words
    return site.root(
        node, "hpcwrap", "run", "--user", "alice", *options, "--", "/bin/sh", "-c", script
    )


def test_reaching_the_memory_limit_is_told_in_a_sentence(site: Site) -> None:
    ran = run(site, "--memory", "64m", "busybox-1", f"{FILL}; exit $?")
    assert ran.code == 137
    assert ran.stderr.endswith(
        "hpcwrap: the job reached its memory limit of 64 MiB: the kernel killed 1 of its processes "
        "(ask for more memory (--memory), or use fewer ranks)\n"
    )


def test_the_same_fits_into_more(site: Site) -> None:
    ran = run(site, "--memory", "400m", "busybox-1", f"{FILL} && echo fits")
    assert (ran.code, ran.stdout, ran.stderr) == (0, "fits\n", "")


OWN = "cd /sys/fs/cgroup; cat memory/$1 $2 2>/dev/null; true"
"""Reads a file of the job's own cgroup, of version 1 or 2."""


def test_limits_can_be_read_inside(site: Site) -> None:
    words = "set -- memory.limit_in_bytes memory.max"
    ran = run(site, "--memory", "64m", "--cpuset", "0", "busybox-1", f"nproc; {words}; {OWN}")
    assert ran.stdout.split() == ["1", str(64 << 20)]


def test_a_killed_run_and_what_it_started_are_ended_by_the_next(site: Site) -> None:
    site.root(
        "n1",
        *("sh", "-c"),
        "setsid hpcwrap run --user alice --pids 20 busybox-1 -- sh -c 'setsid sleep 4321 & wait' "
        ">/dev/null 2>&1 </dev/null & echo $! >/run/run.pid",
    )
    # A word of its own: scripts around it, and this one, have the number within theirs.
    sleeping = "grep -lzx '432[1]' /proc/[0-9]*/cmdline"
    assert site.eventually(lambda: run_on(site, sleeping) != "")
    run_on(site, f"kill -{signal.SIGKILL.value} $(cat /run/run.pid)")
    assert run_on(site, sleeping) != ""
    assert run(site, "busybox-1", "true").code == 0
    assert run_on(site, sleeping) == ""
    assert run_on(site, "find /sys/fs/cgroup -name 'hpcwrap-run*'") == ""


def run_on(site: Site, script: str) -> str:
    return site.root("n1", "sh", "-c", script).stdout


def test_a_mistake_in_a_limit_leaves_nothing(site: Site) -> None:
    ran = run(site, "--cpuset", "4095", "busybox-1", "echo ran")
    assert (ran.code, ran.stdout) == (2, "")
    assert "cannot give the job the CPUs 4095: there are 0" in ran.stderr
    assert run_on(site, "ls /run/hpcwrap/jobs | grep run-") == ""
    assert run_on(site, "find /sys/fs/cgroup -name 'hpcwrap-run*'") == ""


# ---- /dev/shm ----


@pytest.fixture(name="shared")
def environment_with_shm(site: Site) -> Iterator[str]:
    """An environment whose jobs have a /dev/shm of their own."""
    site.add_environment("shared", "base: busybox-1\nshm_size: 100m\n")
    yield "--container=shared"
    site.remove_environment("shared")
    site.need("cluster", "exec", "ctl", "hpcwrap", "setup", "slurm", "--table")


def test_ranks_share_a_shm_that_goes_with_the_job(site: Site, shared: str) -> None:
    job = site.batch(
        "#!/bin/sh\ndf -k /dev/shm | tail -n 1\n"
        "srun -n2 /bin/sh -c 'echo here >/dev/shm/of-$SLURM_PROCID; "
        "while ! cat /dev/shm/of-$((1 - SLURM_PROCID)) 2>/dev/null; do sleep 0.1; done'\n",
        *(shared, "-n2"),
    )
    assert job.code == 0
    assert job.output.split()[1] == str(100 << 10)
    assert job.output.count("here\n") == 2
    assert not run_on(site, "ls /dev/shm").count("of-")


@pytest.mark.usefixtures("shared")
def test_shm_counts_as_the_jobs_memory(site: Site) -> None:
    """Not by filling it: what cannot be swapped out makes the kernel look for other pages first."""
    fill = "head -c 50m /dev/zero >/dev/shm/full; set -- memory.usage_in_bytes memory.current"
    ran = run(site, "--memory", "200m", "shared", f"{fill}; {OWN}")
    assert 50 << 20 < int(ran.stdout) < 100 << 20
