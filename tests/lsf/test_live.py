"""What only LSF has, on a real one: forms of a job, its signals, lsrun, ways round the filter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Iterator

import pytest
from cluster_site import NODES
from driver import LONG, Ask, Ended, Submission
from driver_lsf import Lsf

pytestmark = pytest.mark.lsf

PROGRAM = Path(__file__).parents[1] / "slurm" / "mpi_ranks.py"
INSIDE = "cat /etc/demo-image"
FORMS: Dict[str, tuple[str, int, str]] = {
    "simple": (INSIDE, 0, "busybox-1\n"),
    "compound": (f"{INSIDE}; echo two | cat; (exit 3)", 3, "busybox-1\ntwo\n"),
    "quoted": (f"{INSIDE}; echo \"a  b\" 'c  d' $((1+1)); exit 4", 4, "busybox-1\na  b c  d 2\n"),
    "lines": (f"if true\nthen {INSIDE}\nfi\nexit 5", 5, "busybox-1\n"),
    "background": (f"{INSIDE} & wait; exit 6", 6, "busybox-1\n"),
    "starter in the middle": (f"exec {INSIDE}", 0, "busybox-1\n"),
}


class Jobs:
    """Jobs of bsub's command line, whose output is in files of alice's."""

    def __init__(self, lsf: Lsf) -> None:
        self.lsf = lsf

    def submit(self, *words: str, variables: tuple[str, ...] = ()) -> Submission:
        name = self.lsf.new_name()
        files = ["-N", "-o", f"/home/alice/{name}.out", "-e", f"/home/alice/{name}.err"]
        ran = self.lsf.alice("env", *variables, "bsub", *files, *words)
        found = re.search(r"Job <(\d+)> is submitted", ran.stdout)
        return Submission(found.group(1) if found else "", ran.stderr, name)

    def run(self, *words: str, variables: tuple[str, ...] = ()) -> Ended:
        return self.lsf.wait(self.submit(*words, variables=variables))


@pytest.fixture(scope="session")
def jobs(lsf: Lsf) -> Jobs:
    return Jobs(lsf)


@pytest.fixture(scope="session")
def forms(jobs: Jobs) -> Dict[str, Submission]:
    """All at once."""
    return {name: jobs.submit("-a", "busybox-1", text) for name, (text, _, _) in FORMS.items()}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_job_of_any_form(lsf: Lsf, forms: Dict[str, Submission], form: str) -> None:
    ended = lsf.wait(forms[form])
    assert (ended.code, ended.output, ended.errors) == (*FORMS[form][1:], "")


def test_arguments_of_the_method(jobs: Jobs) -> None:
    assert jobs.run("-a", "container(debian-12)", INSIDE).output == "debian-12\n"


def test_the_variable_without_the_filter(jobs: Jobs) -> None:
    """LSB_ESUB_METHOD of the user goes before the site's; the request is heard all the same."""
    variables = ("LSB_ESUB_METHOD=", "HPCWRAP_REQUEST=busybox-1")
    assert jobs.run(INSIDE, variables=variables).output == "busybox-1\n"


def test_nobody_gets_an_environment_of_others_without_the_filter(jobs: Jobs) -> None:
    ended = jobs.run(INSIDE, variables=("LSB_ESUB_METHOD=", "HPCWRAP_REQUEST=bobs"))
    assert (ended.code, ended.output) == (125, "")
    assert "hpcwrap: alice may not use the environment bobs" in ended.errors


def test_a_request_of_two_lines_without_the_filter(jobs: Jobs) -> None:
    ended = jobs.run(INSIDE, variables=("LSB_ESUB_METHOD=", "HPCWRAP_REQUEST=busybox-1\n"))
    assert (ended.code, ended.output) == (125, "")


def test_a_login_shell_would_lose_the_request(jobs: Jobs) -> None:
    submission = jobs.submit("-L", "/bin/sh", "-a", "busybox-1", INSIDE)
    assert submission.id == ""
    assert "cannot use -L with -a busybox-1" in submission.said


def test_bmod_cannot_change_the_container(lsf: Lsf, jobs: Jobs) -> None:
    held = jobs.submit("-H", "-a", "busybox-1", INSIDE)
    ran = lsf.alice("bmod", "-a", "debian-12", held.id)
    assert "cannot change the container of a job to debian-12" in ran.stderr
    assert lsf.alice("bmod", "-J", "renamed", held.id).code == 0
    assert lsf.alice("bresume", held.id).code == 0
    assert lsf.wait(held).output == "busybox-1\n"


def test_bsub_waits_and_gives_the_code(lsf: Lsf) -> None:
    ran = lsf.alice("bsub", "-K", "-a", "busybox-1", "exit 9")
    assert ran.code == 9


def test_a_signal_of_the_users(lsf: Lsf, jobs: Jobs) -> None:
    name = lsf.new_name()
    script = f"trap 'echo caught; exit 7' USR1; touch {name}.begun; while true; do sleep 0.2; done"
    job = jobs.submit("-a", "busybox-1", script)
    assert lsf.eventually(lambda: lsf.alice("ls", f"{name}.begun").code == 0, LONG)
    lsf.alice("bkill", "-s", "USR1", job.id)
    ended = lsf.wait(job)
    assert (ended.code, ended.output) == (7, "caught\n")


def test_a_job_submitted_from_a_job(lsf: Lsf, jobs: Jobs) -> None:
    """It asks for the same container, and runs once."""
    name = lsf.new_name()
    ended = jobs.run(
        "-a", "debian-12", f"bsub -K -N -o /home/alice/{name}.inner {INSIDE}; {INSIDE}"
    )
    assert ended.output.endswith("debian-12\n")
    assert lsf.alice("cat", f"{name}.inner").stdout == "debian-12\n"


# ---- other hosts ----

SPREAD = ("-n", "2", "-R", "span[ptile=1]")
OTHER = "set -- $LSB_MCPU_HOSTS; other=$3; "


def test_the_code_and_the_streams_of_a_command_elsewhere(jobs: Jobs) -> None:
    """Lsrun of volclava loses the code, and now and then the end of standard input."""
    there = f"read line; echo $line; echo err >&2; {INSIDE}; exit 7"
    script = f"{OTHER} echo in | hpcwrap-launch $other '{there}'"
    ended = jobs.run(*SPREAD, "-a", "busybox-1", script)
    assert (ended.code, ended.output, ended.errors) == (7, "in\nbusybox-1\n", "err\n")


def test_a_command_elsewhere_begins_where_the_job_is(lsf: Lsf, jobs: Jobs) -> None:
    lsf.alice("mkdir", "-p", "deep/below")
    script = f"{OTHER} cd deep/below; hpcwrap-launch $other pwd"
    assert jobs.run(*SPREAD, "-a", "busybox-1", script).output == "/home/alice/deep/below\n"


def test_a_host_of_others_is_refused(jobs: Jobs) -> None:
    ended = jobs.run("-m", "n1", "-a", "busybox-1", "hpcwrap-launch n2 true")
    assert ended.code == 255
    assert "cannot launch on n2: it is not a node of this job" in ended.errors


def test_a_killed_job_ends_on_all_hosts(lsf: Lsf, jobs: Jobs) -> None:
    name = lsf.new_name()
    launch = f"hpcwrap-launch $other 'touch {name}.begun; exec sleep 54321'"
    job = jobs.submit(*SPREAD, "-a", "busybox-1", OTHER + launch)
    assert lsf.eventually(lambda: lsf.alice("ls", f"{name}.begun").code == 0, LONG)
    lsf.cancel(job)
    assert lsf.eventually(lambda: lsf.has_ended(job), LONG)
    for node in NODES:
        assert lsf.eventually(lambda node=node: not sleepers(lsf, node), 60)
        # LSF kills what would have tidied up there; a timer sweeps, or the next job does.
        lsf.root(node, "hpcwrap", "sweep")
    for node in NODES:
        assert lsf.eventually(lambda node=node: not lsf.leftovers(node), 60), lsf.leftovers(node)


def sleepers(lsf: Lsf, node: str) -> str:
    return lsf.root(node, "pgrep", "-f", "sleep 54321").stdout


@pytest.fixture(scope="module")
def mpi(lsf: Lsf) -> Iterator[None]:
    """An environment with Open MPI and MPICH, and a program for both."""
    lsf.need("image", "build", "mpirun-12")
    lsf.need("image", "push", "mpirun-12")
    lsf.add_environment("mpirun-12", "image: registry:5000/mpirun-12:latest\n")
    lsf.alice("tee", PROGRAM.name, stdin=PROGRAM.read_text())
    yield
    lsf.remove_environment("mpirun-12")
    lsf.tell_scheduler()


@pytest.mark.usefixtures("mpi")
@pytest.mark.parametrize("way", ["openmpi -npernode 1", "mpich -n 2 -ppn 1"])
def test_mpirun_knows_the_hosts(lsf: Lsf, way: str) -> None:
    """One rank a node: Debian's MPICH hangs now and then where two share memory by UCX."""
    word = way.split(maxsplit=1)[0]
    script = f"timeout 60 mpirun.{way} python3 {PROGRAM.name} {word}\n"
    ended = lsf.run(Ask(script, "mpirun-12", nodes=2))
    found = re.findall(r"^rank (\d+) (\d+) (\S+) (\S+)$", ended.output, re.M)
    assert sorted(rank for rank, *_ in found) == ["0", "1"]
    assert {node for _, _, node, _ in found} == set(NODES)
    assert {total for _, total, *_ in found} == {"1"}, "0 + 1, by way of the network"


# ---- a host without a helper ----


def test_without_a_helper_a_job_waits_and_nothing_runs_outside(lsf: Lsf, jobs: Jobs) -> None:
    """PRE_EXEC ends with 1: LSF has the job wait, and closes nothing."""
    lsf.root("n1", "mv", "/run/hpcwrap/helper.sock", "/run/hpcwrap/away")
    try:
        job = jobs.submit("-m", "n1", "-a", "busybox-1", INSIDE)
        assert lsf.eventually(lambda: "pre-exec" in lsf.alice("bjobs", "-l", job.id).stdout, 60)
    finally:
        lsf.root("n1", "mv", "/run/hpcwrap/away", "/run/hpcwrap/helper.sock")
    assert lsf.wait(job).output == "busybox-1\n"
    assert lsf.trouble() == ""


def test_the_check_of_the_site_is_well(lsf: Lsf) -> None:
    for node in ("ctl", *NODES):
        lsf.root(node, "hpcwrap", "setup", "lsf", "--table")  # Other tests told ctl alone.
        ran = lsf.root(node, "hpcwrap", "setup", "lsf", "--check")
        lines = ran.stdout.splitlines()
        if node == "ctl":  # It runs no jobs.
            lines = [line for line in lines if "helper" not in line]
        assert not [line for line in lines if line.startswith(("missing", "wrong"))]
