"""Slurm's commands in images of every C library answer as they do on the host."""

from typing import Iterator, List

import pytest
from site_tools import Site

pytestmark = pytest.mark.slurm

IMAGES = {
    "busybox-1": "one static program, no C library",
    "musl-1": "musl",
    "sid-1": "a glibc newer than the host's",
    "debian-12": "the host's glibc",
}
PUSHED = ("musl-1", "sid-1")

# It prints no number of a job: those differ; so does what srun says of a wait for the step before.
SCRIPT = """\
#!/bin/sh
say() { echo "== $1"; "$@" 2>&1; echo "code $?"; }
say sinfo -h -o '%P %D'
say squeue -h -j $SLURM_JOB_ID -o '%u %j %T %D'
say scontrol show hostnames
say scontrol show hostnames 'node[08-11,20]'
say scontrol show partition main
say scontrol write batch_script $SLURM_JOB_ID -
say scontrol update JobId=$SLURM_JOB_ID Comment="$(echo seen)"
say srun -Q -l -n2 -N2 sh -c 'echo rank $SLURM_PROCID of $SLURM_NTASKS; exit 5' | sort
say srun --no-such-option
echo typed | say srun -Q cat
say sattach --layout 999999.0
echo cast >cast-file
say sbcast --force cast-file /tmp/cast-there
say srun -Q -n2 -N2 cat /tmp/cast-there
say srun -Q -n2 -N2 rm /tmp/cast-there
held=$(sbatch --parsable --hold --wrap true)
say squeue -h -j $held -o '%T %r'
say scontrol release $held
say scontrol hold $held
say scancel $held
say squeue -h -j $held
say salloc -Q -n1 srun -Q echo in another allocation
say sstat -j $SLURM_JOB_ID
say sacct -j $SLURM_JOB_ID
say sacctmgr -n show cluster
say sreport cluster utilization
say sshare
say sprio
say strigger --get
say scancel --no-such-option
/usr/bin/squeue -h -j $SLURM_JOB_ID -o %u
"""


@pytest.fixture(scope="module", autouse=True)
def images(site: Site) -> Iterator[None]:
    """Environments of the images that only these tests need."""
    for name in PUSHED:
        site.need("image", "push", name)
        site.add_environment(name, f"image: registry:5000/{name}:latest\n")
    yield
    for name in PUSHED:
        site.remove_environment(name)
    site.tell_scheduler()


@pytest.fixture(scope="module")
def answers(site: Site) -> List[str]:
    """What the commands say in a job on the host."""
    return site.batch(SCRIPT, "-N2", "-n2").output.splitlines()


@pytest.mark.parametrize("image", IMAGES)
def test_they_say_what_they_say_on_the_host(site: Site, image: str, answers: List[str]) -> None:
    assert len([line for line in answers if line == "code 0"]) >= 18
    job = site.batch(SCRIPT, "-N2", "-n2", f"--container={image}")
    assert job.output.splitlines() == answers


@pytest.mark.parametrize("image", IMAGES)
def test_ranks_and_jobs_that_start_from_inside(site: Site, image: str) -> None:
    """A step is in its job's container; a job, as on the host, in what it asks for itself."""
    site.alice("rm", "-f", "plain.out", "asking.out", "default.out")
    where = "echo in ${HPCWRAP_CONTAINER%%@*}."
    job = site.batch(
        f"#!/bin/sh\nsrun -n2 sh -c '{where}'\n"
        f"sbatch --parsable -o plain.out --wrap '{where}'\n"
        f"sbatch --parsable -o asking.out --container=debian-12 --wrap '{where}'\n"
        f"sbatch --parsable -o default.out --partition=containers --wrap '{where}'\n",
        *(f"--container={image}", "-n2"),
    )
    lines = job.output.splitlines()
    assert lines[:2] == [f"in {image}."] * 2
    assert site.eventually(lambda: all(site.has_ended(each) for each in lines[2:]))
    assert site.alice("cat", "plain.out").stdout == "in .\n"
    assert site.alice("cat", "asking.out").stdout == "in debian-12.\n"
    assert site.alice("cat", "default.out").stdout == "in busybox-1.\n"


def test_programs_of_musl_start_them(site: Site) -> None:
    job = site.batch(
        "#!/bin/sh\nmusl-run srun musl-run echo a rank\nmusl-run squeue -h -j $SLURM_JOB_ID -o %u\n"
        "musl-run srun sh -c 'exit 7'\n",
        "--container=musl-1",
    )
    assert job.output.splitlines()[:2] == ["a rank", "alice"]
    assert job.code == 7
