"""If a container was asked for, nothing runs on the host; the job says why, no node is drained."""

import re
from contextlib import contextmanager
from typing import Iterator

import pytest
from site_tools import NODES, SETTINGS, Job, Site

pytestmark = pytest.mark.slurm

OUTSIDE = "/home/alice/ran-outside"
SCRIPT = f"#!/bin/bash\necho ran on $(hostname) >>{OUTSIDE}\nsrun touch {OUTSIDE}\n"


@pytest.fixture(autouse=True)
def nothing_ran(site: Site) -> Iterator[None]:
    """Whatever a test breaks: no file outside, every node in service."""
    site.alice("rm", "-f", OUTSIDE)
    yield
    assert site.alice("ls", OUTSIDE).code != 0, "the job ran although its container was not there"
    assert site.eventually(lambda: site.node_states() == {"idle"}), site.node_states()


def sentence(job: Job) -> str:
    """The one sentence of hpcwrap in a job's output."""
    said = re.findall(r"hpcwrap: (.*)", job.output)
    assert len(set(said)) == 1, job.output
    assert job.code != 0
    return said[0]


def test_an_image_that_cannot_be_pulled(site: Site) -> None:
    site.add_environment("gone", "image: registry:5000/no-such-image:latest\n")
    said = sentence(site.batch(SCRIPT, "--container=gone"))
    assert "no-such-image" in said


@pytest.mark.parametrize("text", ["registry:5000/busybox-1", "./busybox-1", "/some/where"])
@pytest.mark.parametrize("partition", ["main", "containers"])
def test_a_path_or_an_image_is_refused(site: Site, text: str, partition: str) -> None:
    """Slurm ignores what it takes for an OCI bundle when there is no oci.conf."""
    job = site.batch(SCRIPT, f"--container={text}", f"--partition={partition}")
    assert job.id == ""
    assert f"cannot use --container={text}" in job.stderr
    assert site.alice("srun", f"--container={text}", "touch", OUTSIDE).code != 0


def test_a_registry_that_does_not_answer(site: Site) -> None:
    site.add_environment("nowhere", "image: registry:5999/image:latest\n")
    assert "registry:5999" in sentence(site.batch(SCRIPT, "--container=nowhere"))


def test_an_environment_that_went_after_submission(site: Site) -> None:
    site.add_environment("fleeting", "image: registry:5000/busybox-1:latest\n")
    site.remove_environment("fleeting")
    assert "fleeting" in sentence(site.batch(SCRIPT, "--container=fleeting"))


def test_a_broken_environment_names_file_and_line(site: Site) -> None:
    site.add_environment("broken", "image: registry:5000/busybox-1:latest\n")
    site.need(
        *("cluster", "exec", "ctl", "tee", f"{SETTINGS}/environments.d/broken.yaml"),
        stdin="image: registry:5000/busybox-1:latest\nmuonts: [/scratch]\n",
    )
    said = sentence(site.batch(SCRIPT, "--container=broken"))
    assert "broken.yaml:2" in said
    site.remove_environment("broken")


def test_a_mount_that_is_not_there(site: Site) -> None:
    site.add_environment(
        "mountless", "image: registry:5000/busybox-1:latest\nmounts:\n  - /no/such/place\n"
    )
    assert "/no/such/place" in sentence(site.batch(SCRIPT, "--container=mountless"))


@contextmanager
def bound(site: Site, source: str, target: str) -> Iterator[None]:
    """Break a file of every node for a while."""
    for node in NODES:
        site.need("cluster", "exec", node, "mount", "--bind", source, target)
    yield
    for node in NODES:
        site.need("cluster", "exec", node, "umount", target)


def test_a_prolog_whose_program_is_broken(site: Site) -> None:
    with bound(site, "/bin/false", "/opt/hpcwrap/bin/python3"):
        job = site.batch(SCRIPT, "--container=busybox-1")
    assert "the prolog ended with code 1" in sentence(job)
    site.root("n1", "/opt/hpcwrap/share/hpcwrap/epilog/slurm.sh")


@contextmanager
def between_steps(site: Site, step: str) -> Iterator[str]:
    """A job that waits on n1 while its record is broken, and then starts a step; yields its id."""
    site.alice("rm", "-f", "ready", "step.out")
    script = (
        "#!/bin/bash\ntouch ready; while [ -e ready ]; do sleep 0.1; done\n"
        f"srun {step} touch {OUTSIDE}\n"
    )
    ran = site.submit(script, "--container=debian-12", "--output=step.out", "-wn1")
    job = ran.stdout.strip()
    assert site.eventually(lambda: site.alice("ls", "ready").code == 0)
    yield job
    site.alice("rm", "ready")
    assert site.eventually(lambda: "JobState=FAILED" in site.job(job))


@pytest.mark.parametrize("content", ["", "hpcwrap-entry-1", "nonsense"])
def test_a_broken_record(site: Site, content: str) -> None:
    with between_steps(site, "") as job:
        entry = f"/run/hpcwrap/jobs/{job}/entry"
        site.need("cluster", "exec", "n1", "tee", entry, stdin=content)
    assert "hpcwrap: cannot read the record" in site.alice("cat", "step.out").stdout


def test_a_record_that_is_not_there(site: Site) -> None:
    """As if the prolog had not run on this node."""
    with between_steps(site, "--container=debian-12") as job:
        record, away = f"/run/hpcwrap/jobs/{job}", "/run/hpcwrap/jobs/away"
        site.need("cluster", "exec", "n1", "mv", record, away)
    assert "no record" in site.alice("cat", "step.out").stdout
    site.need("cluster", "exec", "n1", "mv", away, record)
    epilog = "/opt/hpcwrap/share/hpcwrap/epilog/slurm.sh"
    site.need("cluster", "exec", "n1", "env", f"SLURM_JOB_ID={job}", epilog)
    assert site.root("n1", "ls", "/run/hpcwrap/jobs").stdout == ""


def test_settings_that_cannot_be_read_fail_every_job(site: Site) -> None:
    """Nobody can tell then whether a default applies."""
    with bound(site, "/etc/hostname", f"{SETTINGS}/hpcwrap.yaml"):
        job = site.batch(SCRIPT, "--partition=containers")
    assert "hpcwrap.yaml:1" in sentence(job)
