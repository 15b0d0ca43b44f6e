"""Every way of asking for a container, and what a job gets that asks in none."""

import json
import re
from typing import Dict, Tuple

import pytest
from site_tools import NODES, Site
from slurm_conf import configured

pytestmark = pytest.mark.slurm

INSIDE = "echo in ${HPCWRAP_CONTAINER%%@*}."
SCRIPT = f"#!/bin/sh\n{INSIDE}\n"
TINY = "--container=busybox-1"

BATCH: Dict[str, str] = {
    "a directive": "sed -i '2i#SBATCH --container=busybox-1' script; sbatch OUT script",
    "an option": f"sbatch OUT {TINY} script",
    "--wrap": f"sbatch OUT {TINY} --wrap '{INSIDE}'",
    "SBATCH_CONTAINER": "SBATCH_CONTAINER=busybox-1 sbatch OUT script",
    "an option over SBATCH_CONTAINER": f"SBATCH_CONTAINER=debian-12 sbatch OUT {TINY} script",
    "a word of the comment": "sbatch OUT --comment 'mine hpcwrap=busybox-1' script",
    "a partition's default": "sbatch OUT --partition=containers script",
}

STEPS: Dict[str, str] = {
    "srun": f"srun {TINY} /bin/sh -c '{INSIDE}'",
    "SRUN_CONTAINER": f"SRUN_CONTAINER=busybox-1 srun /bin/sh -c '{INSIDE}'",
    "srun, a word of the comment": f"srun --comment=hpcwrap=busybox-1 /bin/sh -c '{INSIDE}'",
    "a step of salloc": f"salloc -Q {TINY} srun /bin/sh -c '{INSIDE}'",
    "SALLOC_CONTAINER": f"SALLOC_CONTAINER=busybox-1 salloc -Q srun /bin/sh -c '{INSIDE}'",
}


@pytest.mark.parametrize("title", BATCH)
def test_a_batch_job_asks(site: Site, title: str) -> None:
    site.alice("tee", "script", stdin=SCRIPT)
    options = "--parsable --output=asked --open-mode=truncate"
    ran = site.alice("bash", "-c", BATCH[title].replace("OUT", options))
    assert ran.code == 0
    job = ran.stdout.strip()
    assert site.eventually(lambda: site.has_ended(job))
    assert site.alice("cat", "asked").stdout == "in busybox-1.\n"


@pytest.mark.parametrize("title", STEPS)
def test_a_step_asks(site: Site, title: str) -> None:
    assert "in busybox-1.\n" in site.alice("bash", "-c", STEPS[title]).stdout


def test_a_shell_of_salloc_is_the_images(site: Site) -> None:
    """Slurm starts $SHELL, which is to be in the image."""
    ran = site.alice("salloc", "-Q", "--container=debian-12", stdin=INSIDE)
    assert "in debian-12.\n" in ran.stdout
    refused = site.alice("salloc", "-Q", TINY, stdin=INSIDE)
    assert "execve(): /bin/bash: No such file or directory" in refused.stderr


def test_none_is_an_answer_too(site: Site) -> None:
    ask = f"/bin/sh -c '{INSIDE}'"
    for words in (
        f"srun -p containers --container=none {ask}",
        f"SRUN_CONTAINER=none srun -p containers {ask}",
        f"salloc -Q -p containers --container=none srun {ask}",
    ):
        assert site.alice("bash", "-c", words).stdout == "in .\n"


def test_salloc_where_it_starts_no_step(site: Site) -> None:
    """Slurm itself refuses --container then; a default reaches the steps, not salloc's shell."""
    with configured(site, "/^LaunchParameters=/d"):
        refused = site.alice("salloc", "-Q", TINY, "srun", "/bin/true")
        assert refused.code == 1
        assert "--container requires LaunchParameters=use_interactive_step" in refused.stderr
        where = "echo in ${HPCWRAP_CONTAINER%%@*}."
        shell = f"{where}\nsrun /bin/sh -c '{where}'\n"
        ran = site.alice("salloc", "-Q", "-p", "containers", stdin=shell)
        assert ran.stdout == "in .\nin busybox-1.\n"


# ---- clients without the plugin ----

UNTIL_NOTED = f"{SCRIPT}until [ -e noted ]; do sleep 0.1; done\n"


def rest(site: Site, **job: object) -> "Tuple[Dict[str, object], str]":
    """Submit by slurmrestd, which serves one request on its standard input: answer and log."""
    fields = {
        "name": "rest",
        "environment": {"PATH": "/usr/bin:/bin"},
        "current_working_directory": "/home/alice",
        "standard_output": "rest.out",
        **job,
    }
    version, options = served(site)
    body = json.dumps({"script": UNTIL_NOTED, "job": fields})
    request = (
        f"POST /slurm/{version}/job/submit HTTP/1.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    # It believes the owner of the pipe that it reads: alice's `cat`, not us.
    command = f"cat | /usr/sbin/slurmrestd -a rest_auth/local {options}"
    ran = site.alice("bash", "-c", command, stdin=request)
    answer: Dict[str, object]
    answer, _ = json.JSONDecoder().raw_decode(ran.stdout, ran.stdout.index("{"))
    return answer, ran.stderr


def served(site: Site) -> Tuple[str, str]:
    """The newest version that this slurmrestd speaks, and its options for that one."""
    script = "/usr/sbin/slurmrestd -s list; /usr/sbin/slurmrestd -d list"
    listed = site.alice("bash", "-c", script)
    words = (listed.stdout + listed.stderr).split()
    version = max(re.findall(r"v0\.0\.\d+", " ".join(words)))
    # From 23.11 on a plugin serves all versions, each by a parser of its own.
    if "openapi/slurmctld" in words:
        return version, f"-s openapi/slurmctld -d {version}"
    return version, f"-s openapi/{version}"


def test_a_job_by_slurmrestd(site: Site) -> None:
    site.alice("rm", "-f", "rest.out", "noted")
    job = str(rest(site, container="busybox-1")[0]["job_id"])
    # Where the filter does not know the digest yet, the prolog has it told while the job runs:
    # Slurm takes no comment for one that has ended.
    noted = "AdminComment=hpcwrap=busybox-1@sha256:"
    assert site.eventually(lambda: noted in site.job(job)), site.job(job)
    site.alice("touch", "noted")
    assert site.eventually(lambda: site.has_ended(job))
    assert site.alice("cat", "rest.out").stdout == "in busybox-1.\n"


def test_slurmrestd_tells_why_it_refuses(site: Site) -> None:
    """None of the releases passes the sentence on: it is in slurmrestd's log."""
    answer, log = rest(site, container="debain-12")
    assert answer["errors"]
    assert not answer.get("job_id")
    assert "did you mean debian-12?" in log


# ---- a step that asks for another ----


def test_a_step_runs_in_a_container_that_the_site_has_or_not_at_all(site: Site) -> None:
    """Repeats the name, asks for none and for images, in all ways (another: test_ways_steps.py)."""
    job = site.batch(
        "#!/bin/sh\n"
        f"srun --container=debian-12 sh -c '{INSIDE}'\n"
        "for other in none ./bundle /some/path docker://debian:12; do\n"
        "  srun --container=$other echo WRONG; echo code $?\n"
        "  SRUN_CONTAINER=$other srun echo WRONG; echo code $?\n"
        f"done\nsrun sh -c '{INSIDE}'\n",
        "--container=debian-12",
    )
    assert "WRONG" not in job.output
    assert job.output.count("in debian-12.\n") == 2
    assert job.output.splitlines().count("code 1") == 8
    assert job.output.count("cannot run this step without a container: its job has ") == 2
    assert job.output.count("cannot use --container=") == 6
    assert site.eventually(lambda: site.node_states() == {"idle"})


def test_a_directory_that_the_container_has_not(site: Site) -> None:
    """Slurm says it for each rank and goes to /tmp; where the container has one, it is taken."""
    job = site.batch("#!/bin/sh\nsrun -n2 --chdir=/shared pwd\n", TINY, "-n2")
    assert job.output.count("the directory /shared is not in the container: started in /tmp") == 1
    assert job.output.splitlines().count("/tmp") == 2
    ran = site.alice("srun", "--container=debian-12", "--chdir=/opt/demo", "pwd")
    assert ran.stdout == "/opt/demo\n"


# ---- again ----


def test_a_requeued_jobs_container_is_made_anew(site: Site) -> None:
    """The job requeues itself from inside; its second run finds nothing of the first."""
    site.alice("rm", "-f", "again")
    ran = site.submit(
        f'#!/bin/sh\n{INSIDE}\nif [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ]; then\n'
        "scontrol requeue $SLURM_JOB_ID; sleep 60; fi\n",
        *("--requeue", TINY, "-wn1", "--output=again", "--open-mode=append"),
    )
    job = ran.stdout.strip()
    record = f"/run/hpcwrap/jobs/{job}/record.json"
    assert site.eventually(lambda: "Restarts=1" in site.job(job))
    assert site.eventually(lambda: "JobState=PENDING" in site.job(job))
    assert site.eventually(lambda: site.root("n1", "ls", record).code != 0)
    assert site.leftovers("n1") == []
    site.root("ctl", "sleep", "2")  # credentials of the same second are revoked ones
    site.root("ctl", "scontrol", "update", f"JobId={job}", "StartTime=now")
    assert site.eventually(lambda: site.has_ended(job))
    assert "Restarts=1" in site.job(job)
    assert site.alice("cat", "again").stdout.count("in busybox-1.\n") == 2
    for node in NODES:
        assert site.eventually(lambda node=node: site.leftovers(node) == [])
