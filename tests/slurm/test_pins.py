"""A job runs the image that its environment had when it was submitted."""

from __future__ import annotations

import re
from typing import Iterator, List

import pytest
from site_tools import Site
from variants import REGISTRY, STORE, push

pytestmark = pytest.mark.slurm

SLURM_LUA = "/etc/slurm/job_submit.lua"
SCRIPT = "#!/bin/sh\necho $HPCWRAP_CONTAINER version=$VERSION\n"


def hpcwrap(site: Site, *words: str) -> str:
    return site.need("cluster", "exec", "ctl", "hpcwrap", *words)


@pytest.fixture(name="versions")
def make_versions(site: Site) -> Iterator[List[str]]:
    """An environment whose tag has had two digests; the older first, and the tag has the older."""
    older = push(site, "moving:latest", "1")
    site.add_environment("moving", f"image: {REGISTRY}/moving:latest\n")
    hpcwrap(site, "pull", "--quiet", "moving")
    newer = push(site, "moving:other", "2")
    yield [older, newer]
    site.remove_environment("moving")
    hpcwrap(site, "setup", "slurm", "--table")


def forge(site: Site, change: str) -> None:
    """Change slurmctld's table by sed and have it read."""
    newer = f"touch -d @$(($(stat -c %Y {SLURM_LUA}) + 1)) {SLURM_LUA}"
    script = f"sed -i '{change}' /var/lib/hpcwrap/slurm_table.lua; {newer}"
    site.need("cluster", "exec", "ctl", "sh", "-c", script)


def move_tag(site: Site) -> None:
    push(site, "moving:latest", "2")
    assert "is now" in hpcwrap(site, "image", "refresh", "moving")


def hold(site: Site, script: str, *options: str) -> str:
    return site.submit(script, "--hold", "--output=out-%j", *options).stdout.strip()


def finish(site: Site, job_id: str) -> str:
    site.need("cluster", "exec", "ctl", "scontrol", "release", job_id)
    assert site.eventually(lambda: site.has_ended(job_id), 60), site.job(job_id)
    return site.alice("cat", f"out-{job_id}").stdout


def test_a_held_job_runs_the_digest_of_its_submission(site: Site, versions: List[str]) -> None:
    older, newer = versions
    held = hold(site, SCRIPT, "--container=moving", "--comment=mine")
    move_tag(site)
    assert finish(site, held) == f"moving@{older} version=1\n"
    assert f"AdminComment=hpcwrap=moving@{older}" in site.job(held)
    assert f"Comment=mine hpcwrap=moving@{older}" in site.job(held)
    job = site.batch(SCRIPT, "--container=moving")
    assert job.output == f"moving@{newer} version=2\n"
    assert f"AdminComment=hpcwrap=moving@{newer}" in site.job(job.id)


def test_a_job_that_is_requeued_keeps_its_digest(site: Site, versions: List[str]) -> None:
    script = SCRIPT + '[ "$SLURM_RESTART_COUNT" = 1 ] || scontrol requeue $SLURM_JOB_ID\n'
    held = hold(site, script, "--container=moving", "--requeue", "--open-mode=append")
    move_tag(site)
    site.need("cluster", "exec", "ctl", "scontrol", "release", held)
    again = re.compile(r"JobState=PENDING Reason=BeginTime(.|\n)*Restarts=1")
    assert site.eventually(lambda: again.search(site.job(held)) is not None), site.job(held)
    # Within a second, slurmd still takes it for the job that it has just killed.
    later = "StartTime=now+3"
    site.need("cluster", "exec", "ctl", "scontrol", "update", f"JobId={held}", later)
    assert site.eventually(lambda: site.has_ended(held), 60), site.job(held)
    line = f"moving@{versions[0]} version=1\n"
    assert site.alice("cat", f"out-{held}").stdout.count(line) == 2


def test_an_image_that_left_the_store_is_pulled_by_its_digest(
    site: Site, versions: List[str]
) -> None:
    held = hold(site, SCRIPT, "--container=moving")
    move_tag(site)
    hpcwrap(site, "rm", versions[0])
    assert finish(site, held) == f"moving@{versions[0]} version=1\n"


def test_users_run_again_what_they_ran_before(site: Site, versions: List[str]) -> None:
    move_tag(site)
    name = f"moving@{versions[0]}"
    job = site.batch(SCRIPT + "srun sh -c 'echo step $VERSION'\n", f"--container={name}")
    assert job.output == f"{name} version=1\nstep 1\n"
    ran = site.alice("srun", f"--container={name}", "sh", "-c", "echo $VERSION")
    assert ran.stdout == "1\n"


def test_users_get_no_other_image_by_its_digest(site: Site, versions: List[str]) -> None:
    other = re.search(r"sha256:[0-9a-f]{64}", site.batch(SCRIPT, "--container=busybox-1").output)
    assert other
    job = site.batch(SCRIPT, f"--container=moving@{other.group()}")
    assert job.id == ""
    assert "the environment never had this image here" in job.stderr


def test_a_pin_that_went_round_the_filter_gets_no_other_image(
    site: Site, versions: List[str]
) -> None:
    """On the node: the store has the image, but the environment's repository does not."""
    job = site.batch(SCRIPT, "--container=busybox-1")
    digest = job.output.split("@")[1].split()[0]
    forge(site, f"s/{versions[0]}/{digest}/g")
    try:
        job = site.batch(SCRIPT, f"--container=moving@{digest}")
    finally:
        hpcwrap(site, "setup", "slurm", "--table")
    assert job.code != 0
    assert f"cannot pull the image {REGISTRY}/moving@{digest}" in job.output


def test_leases_last_as_long_as_the_job(site: Site) -> None:
    site.alice("rm", "-f", "go")
    script = "#!/bin/sh\nuntil [ -e go ]; do sleep 0.1; done\n"
    ran = site.submit(script, "--container=busybox-1", "-N2", "--output=/dev/null")
    job_id = ran.stdout.strip()

    def leases() -> List[str]:
        names = site.root("ctl", "find", f"{STORE}/leases", "-name", f"*:{job_id}").stdout
        return [line.rpartition("/")[2] for line in sorted(names.split())]

    assert site.eventually(lambda: leases() == [f"n1:{job_id}", f"n2:{job_id}"]), leases()
    site.alice("touch", "go")
    assert site.eventually(lambda: leases() == []), leases()


def test_a_tag_is_looked_up_again_beside_the_job(site: Site, versions: List[str]) -> None:
    """With the policy always, and no pin: the job runs what is there, the next one what is new."""
    site.add_settings("pull", "pull: always\n")
    try:
        hpcwrap(site, "setup", "slurm", "--table")
        forge(site, "s/pins_until = .*/pins_until = 1,/")
        push(site, "moving:latest", "2")
        job = site.batch(SCRIPT, "--container=moving")
        assert job.output == f"moving@{versions[0]} version=1\n"
        link = f"{STORE}/refs/{REGISTRY}%2Fmoving:latest"
        now = f'"digest": "{versions[1]}"'
        assert site.eventually(lambda: now in site.root("ctl", "cat", link).stdout)
        job = site.batch(SCRIPT, "--container=moving")
        assert job.output == f"moving@{versions[1]} version=2\n"
    finally:
        site.remove_settings("pull")
