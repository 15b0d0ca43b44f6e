"""A step that asks for another container runs in that one, and its job goes on in its own."""

import re
from typing import Iterator

import pytest
from site_tools import NODES, Site
from step_tools import OTHER, ends_late

pytestmark = pytest.mark.slurm

INSIDE = "echo rank $SLURM_PROCID in ${HPCWRAP_CONTAINER%%@*}.; [ -e /bin/bash ] || echo no bash"
RANK = f"/bin/sh -c '{INSIDE}'"


@pytest.fixture(autouse=True)
def nothing_is_left(site: Site) -> Iterator[None]:
    """Whatever a step does: nothing of it stays, and every node is in service."""
    yield
    for node in NODES:
        assert site.eventually(lambda node=node: site.leftovers(node) == []), site.leftovers(node)
    assert site.eventually(lambda: site.node_states() == {"idle"}), site.node_states()


def ranks(text: str) -> "list[str]":
    """Where each rank was, in order of the steps; only one of the images has no bash."""
    found = re.findall(r"rank \d? ?in (\S*)\.", text)
    assert text.splitlines().count("no bash") == found.count("busybox-1")
    return found


@pytest.mark.parametrize("own", ["--container=debian-12", ""])
def test_a_step_in_another_container_on_two_nodes(site: Site, own: str) -> None:
    job = site.batch(
        f"#!/bin/sh\n{INSIDE}\nsrun {RANK}\n{OTHER} {RANK}\nSRUN_CONTAINER=busybox-1 srun {RANK}\n"
        f"srun --container=debian-12 {RANK}\nsrun {RANK}\n",
        *("-N2", *filter(None, [own])),
    )
    mine = ["debian-12" if own else ""]
    others = ["busybox-1"] * 4 + ["debian-12"] * 2
    assert ranks(job.output) == mine + mine * 2 + others + mine * 2
    assert site.root("ctl", "hpcwrap", "show", "record", f"{job.id}.1").stdout.count("busybox-1")


def test_steps_at_once_each_in_its_own(site: Site) -> None:
    """Three of one job on one node; the job's own is not disturbed by the end of the others."""
    until = "until [ -e ended ]; do sleep 0.1; done"
    job = site.batch(
        f"#!/bin/sh\nrm -f ended; srun --overlap /bin/sh -c '{until}; {INSIDE}' &\n"
        f"for i in 1 2; do srun --overlap --container=busybox-1 {RANK} & eval p$i=$!; done\n"
        "wait $p1 $p2; touch ended; wait\n",
        *("-n1", "--container=debian-12"),
    )
    assert sorted(ranks(job.output)) == ["busybox-1", "busybox-1", "debian-12"]


def test_steps_of_salloc_arrays_and_components(site: Site) -> None:
    alone = site.alice("bash", "-c", f"salloc -Q -n1 {OTHER} {RANK}")
    assert ranks(alone.stdout) == ["busybox-1"]
    array = site.batch(f"#!/bin/sh\n{OTHER} {RANK}\n", "--array=1-2", "--open-mode=append")
    assert ranks(array.output) == ["busybox-1"] * 2
    job = site.batch(
        "#!/bin/sh\n#SBATCH -n1 --container=debian-12\n#SBATCH hetjob\n#SBATCH -n1\n"
        f"{OTHER} --het-group=0,1 {RANK}\n",
    )
    assert ranks(job.output) == ["busybox-1"] * 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("debain-12", "there is no environment 'debain-12' (did you mean debian-12?)"),
        ("bobs", "alice may not use the environment bobs"),
        ("/some/path", "cannot use --container=/some/path"),
    ],
)
@pytest.mark.parametrize("own", ["--container=debian-12", "--container=none"])
def test_what_is_refused_runs_nowhere(site: Site, own: str, name: str, sentence: str) -> None:
    site.add_environment("bobs", "image: registry:5000/busybox-1:latest\nusers: [bob]\n")
    site.alice("rm", "-f", "ran")
    job = site.batch(
        f"#!/bin/sh\nsrun --container={name} touch ran\necho code $?\nsrun {RANK}\n", "-n1", own
    )
    assert job.output.count(sentence) == job.output.count("error: hpcwrap: ") == 1
    assert "code 1\n" in job.output
    assert site.alice("ls", "ran").code != 0
    assert ranks(job.output) == [re.sub("none", "", own[12:])]


# ---- killed, too slow ----


STEP = "/run/hpcwrap/jobs/{}.0"


@pytest.fixture
def killed(site: Site) -> Iterator[str]:
    """A job on n1, the slurmstepd of whose step in another container has been killed; its id."""
    site.alice("rm", "-f", "up")
    script = f"#!/bin/sh\n{OTHER} sh -c 'touch up; sleep 8' & sleep 60\n"
    job = site.submit(script, "-wn1", "-n1", "--container=debian-12").stdout.strip()
    assert site.eventually(lambda: site.alice("ls", "up").code == 0)
    owner = site.root("n1", "ls", f"{STEP.format(job)}/owners").stdout
    assert site.root("n1", "kill", "-9", owner.partition("-")[0]).code == 0
    yield job
    site.alice("scancel", job)
    assert site.eventually(lambda: site.has_ended(job))


def test_the_next_steps_prolog_drops_what_a_killed_slurmstepd_left(site: Site, killed: str) -> None:
    ran = site.alice("srun", f"--jobid={killed}", "--overlap", "--container=busybox-1", "true")
    assert ran.code == 0
    assert site.root("n1", "ls", STEP.format(killed)).code != 0
    assert site.root("n1", "ls", f"/run/hpcwrap/jobs/{killed}/entry").code == 0


def test_the_epilog_drops_what_a_killed_slurmstepd_left(site: Site, killed: str) -> None:
    site.alice("scancel", killed)
    assert site.eventually(lambda: site.root("n1", "ls", STEP.format(killed)).code != 0)


def test_a_prolog_that_takes_too_long_is_not_waited_for(site: Site) -> None:
    """It goes on after the end of its step and job, and drops what it has made for nobody."""
    assert ends_late(site, "n1").endswith("\n0\ncode 0\n")
