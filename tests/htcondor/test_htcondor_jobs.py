"""What only HTCondor has: ways to name a container, held jobs, file transfer, a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, List

import pytest
from cluster_site import NODES
from clusterlib import lifecycle, roots
from driver import LONG
from driver_htcondor import HtCondor
from submitting import TRANSFER, Jobs

pytestmark = pytest.mark.htcondor

LOOK = 'echo "image=$(cat /etc/demo-image 2>/dev/null) in=${HPCWRAP_CONTAINER%@*}"\n'
MANY = 32
LIBEXEC = "/usr/libexec/condor"


@pytest.fixture(scope="module")
def jobs(pool: HtCondor) -> Jobs:
    """The jobs of this module, those of the usual pool, all at once."""
    made = Jobs(pool)
    made.submit("image", LOOK, "container_image = debian-12")
    made.submit("docker", LOOK, "universe = docker", "docker_image = debian-12")
    made.submit("url", LOOK, "universe = container", "container_image = docker://debian-12")
    made.submit("attribute", LOOK, '+Container = "debian-12"')
    made.submit(
        "transfer",
        TRANSFERRED,
        "container_image = debian-12",
        *TRANSFER,
        "transfer_input_files = only-given",
        "transfer_output_files = made",
    )
    made.submit("none", LOOK, "container = none")
    made.submit(
        "chirp",
        f"{LIBEXEC}/condor_chirp set_job_attr_delayed ChirpInside 7\n",
        "container = debian-12",
    )
    made.submit("variables", VARIABLES, "container = debian-12", ENVIRONMENT)
    made.submit("slow", "touch ~/only-slow.begun; sleep 54321\n", "container = busybox-1")
    made.submit("hold", "touch ~/only-hold.begun; sleep 54321\n", "container = busybox-1")
    made.submit("unpullable", LOOK, "container = unpullable")
    return made


TRANSFERRED = f"{LOOK}cat only-given; echo made >made; case $PWD in $HOME) echo home;; esac\n"
VARIABLES = 'echo "$LD_LIBRARY_PATH|$PYTHONPATH|$WORDS|$LC_CTYPE|$HOME|$TMPDIR"; ls /tmp | wc -l\n'
ENVIRONMENT = (
    'environment = "LD_LIBRARY_PATH=/no/such PYTHONPATH=/no/such LD_PRELOAD=/no/such.so '
    "WORDS='a b'\""
)


@pytest.fixture(autouse=True, scope="module")
def given(pool: HtCondor) -> None:
    pool.alice("tee", "only-given", stdin="given\n")


@pytest.mark.parametrize("name", ["image", "docker", "url", "attribute"])
def test_every_way_to_name_a_container(jobs: Jobs, name: str) -> None:
    assert jobs.output(name) == "image=debian-12 in=debian-12\n"


def test_files_are_transferred_and_the_scratch_directory_is_home(jobs: Jobs) -> None:
    assert jobs.output("transfer") == "image=debian-12 in=debian-12\ngiven\nhome\n"
    assert jobs.pool.alice("cat", "made").stdout == "made\n"


def test_none_runs_on_the_host(jobs: Jobs) -> None:
    assert jobs.output("none") == "image= in=\n"


def test_chirp_works_inside(jobs: Jobs) -> None:
    assert jobs.ended("chirp")["ExitCode"] == 0
    assert jobs.ad("chirp")["ChirpInside"] == 7


def test_variables_are_the_jobs_and_harm_nobody(jobs: Jobs) -> None:
    expected = "/no/such|/no/such|a b||/home/alice|/tmp\n0\n"
    assert jobs.output("variables") == expected


def test_many_jobs_at_once_on_a_node(pool: HtCondor) -> None:
    """32 slots of n1 have containers at the same time, and none of them when they end."""
    script = f"echo >only-many.$1; until test -e only-many.go; do sleep 0.2; done; {LOOK}"
    lines = ("container = busybox-1", "arguments = $(Process)", "request_memory = 64")
    node = 'requirements = TARGET.Machine == "n1.hpcwrap"'
    jobs = Jobs(pool)
    jobs.submit("many", script, *lines, node, "output = only-many.out.$(Process)", number=MANY)
    begun = ("sh", "-c", "ls only-many.[0-9]* | wc -l")
    assert pool.eventually(lambda: int(pool.alice(*begun).stdout or 0) == MANY, LONG)
    mark = f"htcondor-{jobs.ids['many']}."
    assert (
        len([name for name in leftovers(pool, jobs.ids["many"]) if name.startswith(mark)]) == MANY
    )
    pool.alice("touch", "only-many.go")
    assert pool.eventually(lambda: not leftovers(pool, jobs.ids["many"]), LONG)
    told = pool.alice("sh", "-c", "cat only-many.out.*").stdout.splitlines()
    assert told == ["image=busybox-1 in=busybox-1"] * MANY


# ---- what is refused, and what is held ----


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("container_image = nosuch", "cannot find the environment nosuch"),
        ("container_image = docker://nosuch", "cannot find the environment nosuch"),
        ("container_image = docker://registry:5000/debian-12", "it is a path or an image"),
        ("container = /home/alice/own.sqsh", "it is a path or an image"),
        ("container_image = own.sif", "it is a path or an image"),
        ('+SingularityImage = "/cvmfs/some/where"', "it is a path or an image"),
        ("container = bobs", "alice may not use the environment bobs"),
        ("container = DEBIAN-12", "cannot find the environment DEBIAN-12"),
        ("+Container = 7", "Submit requirement HpcwrapImages"),
    ],
)
def test_what_is_refused_at_submission(pool: HtCondor, line: str, why: str) -> None:
    assert why in Jobs(pool).submit("refused", LOOK, line)


def test_a_job_is_held_once_and_says_why(jobs: Jobs) -> None:
    ad = jobs.ended("unpullable")
    assert ad["JobStatus"] == 5
    assert re.match(r"hpcwrap: .*no-such-image", ad["HoldReason"])
    assert ad["NumJobStarts"] == 1
    assert "no-such-image" in jobs.errors("unpullable")
    assert jobs.output("unpullable") == ""


def test_a_user_who_edits_the_ad_gets_nothing_but_his_own(jobs: Jobs) -> None:
    """The schedd looks at submission only; the node looks again."""
    pool = jobs.pool
    jobs.submit("edited", LOOK, "container = busybox-1", "hold = true")
    pool.alice("condor_qedit", jobs.ids["edited"], "Container", '"bobs"')
    pool.alice("condor_release", jobs.ids["edited"])
    assert pool.eventually(lambda: "bobs" in (jobs.ad("edited").get("HoldReason") or ""), LONG)
    assert jobs.output("edited") == ""


# ---- the end ----


def has_begun(jobs: Jobs, name: str) -> bool:
    return jobs.pool.alice("ls", f"only-{name}.begun").code == 0


def leftovers(pool: HtCondor, job_id: str) -> List[str]:
    return [name for node in NODES for name in pool.leftovers(node) if f"-{job_id}." in name]


def sleepers(pool: HtCondor) -> str:
    return "".join(pool.root(node, "pgrep", "-f", "sleep 54321").stdout for node in NODES)


def test_a_held_job_leaves_nothing(jobs: Jobs) -> None:
    pool, job_id = jobs.pool, jobs.ids["hold"]
    assert pool.eventually(lambda: has_begun(jobs, "hold"), LONG)
    assert leftovers(pool, job_id)
    pool.alice("condor_hold", job_id)
    assert pool.eventually(lambda: not leftovers(pool, job_id), LONG)
    pool.alice("condor_rm", job_id)


def test_a_starter_that_is_killed_leaves_what_the_sweep_takes(jobs: Jobs) -> None:
    pool, job_id = jobs.pool, jobs.ids["slow"]
    assert pool.eventually(lambda: has_begun(jobs, "slow"), LONG)
    (node,) = (node for node in NODES if f"-{job_id}." in "".join(pool.leftovers(node)))
    pool.alice("rm", "only-slow.begun")
    owners = pool.root(node, "sh", "-c", f"ls /run/hpcwrap/jobs/htcondor-{job_id}.*/owners").stdout
    pool.root(node, "kill", "-KILL", owners.partition("-")[0])
    pool.root(node, "hpcwrap", "sweep")
    assert pool.eventually(lambda: has_begun(jobs, "slow"), LONG), "the job starts anew"
    pool.alice("condor_rm", job_id)
    assert pool.eventually(lambda: not leftovers(pool, job_id), LONG)
    assert pool.eventually(lambda: not sleepers(pool))


# ---- the pool's default ----


@pytest.fixture(scope="module")
def with_default(jobs: Jobs) -> Iterator[Jobs]:
    """A pool whose jobs get busybox-1 when they name none, told as an administrator would."""
    pool = jobs.pool
    waiting = ("condor_q", "-all", "-af", "ClusterId", "-const", "JobStatus != 5")
    assert pool.eventually(lambda: not pool.root("ctl", *waiting).stdout.strip(), LONG)
    pool.add_settings("default", "defaults: {htcondor: {pool: {default: busybox-1}}}\n")
    tell_all(pool)
    yield Jobs(pool)
    pool.remove_settings("default")
    tell_all(pool)


def tell_all(pool: HtCondor) -> None:
    for node in ("ctl", *NODES):
        pool.need("cluster", "exec", node, "hpcwrap", "setup", "htcondor")
        pool.need("cluster", "exec", node, "condor_reconfig")


def test_the_default_of_the_pool(with_default: Jobs) -> None:
    with_default.submit("default", LOOK)
    with_default.submit("other", LOOK, "container = debian-12")
    with_default.submit("out", LOOK, "container = none")
    assert with_default.output("default") == "image=busybox-1 in=busybox-1\n"
    assert with_default.output("other") == "image=debian-12 in=debian-12\n"
    assert with_default.output("out") == "image= in=\n"


# ---- setup ----


def test_setup_has_nothing_more_to_do(pool: HtCondor) -> None:
    for node in ("ctl", "n1"):
        ran = pool.root(node, "hpcwrap", "setup", "htcondor", "--check")
        assert ran.code == 0, ran.stdout


def test_check_tells_of_another_file_that_wins(pool: HtCondor) -> None:
    path = "/etc/condor/config.d/99-other.config"
    pool.root(
        "n1", "tee", path, stdin="SINGULARITY = /usr/bin/apptainer\nDOCKER = /usr/bin/docker\n"
    )
    try:
        ran = pool.root("n1", "hpcwrap", "setup", "htcondor", "--check")
    finally:
        pool.root("n1", "rm", path)
    assert ran.code == 3
    assert re.search(r"^wrong .*SINGULARITY .*is /usr/bin/apptainer", ran.stdout, re.M)
    assert re.search(r"^wrong .*DOCKER .*is /usr/bin/docker", ran.stdout, re.M)


def test_the_tree_below_running_nodes_is_not_cleaned_away(pool: HtCondor, tmp_path: Path) -> None:
    """tools/cluster makes another tree for another list of packages, and removes older ones."""
    tree = Path(lifecycle.read_marks(pool.state)["lower_root"])
    assert tree.name.startswith("htcondor-trixie-")
    assert str(tree) not in roots.unused(str(tree.parent), "htcondor-trixie")
    older = tmp_path / f"htcondor-trixie-{0:012}"
    older.mkdir()
    assert roots.unused(str(tmp_path), "htcondor-trixie") == [str(older)]
