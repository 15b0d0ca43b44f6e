"""mpirun inside a job's container: its daemons start in the containers of the other nodes."""

import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

import pytest
from site_tools import Ran, Site

pytestmark = pytest.mark.slurm

IMAGE = "mpirun-12"
PROGRAM = Path(__file__).with_name("mpi_ranks.py")
LAUNCH = "/.hpcwrap/bin/hpcwrap-launch"
# One rank of MPICH a node: Debian's 4.0.2 hangs in MPI_Finalize now and then (a run in five, on the
# host as well) where two ranks of a node share memory by UCX.
SCRIPT = f"""#!/bin/bash
say() {{ echo "== $1"; }}
openmpi() {{ timeout 40 mpirun.openmpi "$@" -npernode 1 python3 mpi_ranks.py openmpi; }}
mpich() {{ timeout 40 mpirun.mpich -n 2 -ppn 1 python3 mpi_ranks.py mpich; }}
say steps; srun -N2 -n2 --ntasks-per-node=1 sh -c 'echo $(uname -n) $(readlink /proc/self/ns/mnt)'
say openmpi; openmpi
say openmpi-rsh; openmpi --mca plm rsh
say mpich; mpich
export HYDRA_LAUNCHER_EXEC={LAUNCH}
say mpich-ssh; HYDRA_LAUNCHER=ssh mpich
say mpich-rsh; HYDRA_LAUNCHER=rsh mpich
say end
"""
WAYS = ("openmpi", "openmpi-rsh", "mpich", "mpich-ssh", "mpich-rsh")


class Rank(NamedTuple):
    """What a rank of mpi_ranks.py said."""

    rank: int
    total: int
    node: str
    namespace: str


@pytest.fixture(scope="module")
def sections(site: Site) -> Iterator[Dict[str, str]]:
    """One job on two nodes runs mpirun in all ways; way → its output."""
    site.need("image", "build", IMAGE)
    site.need("image", "push", IMAGE)
    site.add_environment(IMAGE, f"image: registry:5000/{IMAGE}:latest\n")
    site.alice("tee", PROGRAM.name, stdin=PROGRAM.read_text())
    job = site.batch(SCRIPT, f"--container={IMAGE}", "-N2", "--ntasks-per-node=2")
    print(job.output)
    yield dict(re.findall(r"^== (\S+)\n((?:(?!== ).*\n)*)", job.output, re.M))
    site.remove_environment(IMAGE)


def ranks(text: str) -> List[Rank]:
    """The ranks that spoke, in order."""
    found = re.findall(r"^rank (\d+) (\d+) (\S+) (\S+)$", text, re.M)
    return sorted(Rank(int(rank), int(total), *rest) for rank, total, *rest in found)


@pytest.mark.parametrize("way", WAYS)
def test_all_ranks_are_in_the_jobs_containers(sections: Dict[str, str], way: str) -> None:
    containers = dict(line.split() for line in sections["steps"].splitlines())
    assert set(containers) == {"n1", "n2"}
    found = ranks(sections[way])
    assert [(each.rank, each.total, each.node) for each in found] == [(0, 1, "n1"), (1, 1, "n2")]
    assert {each.node: each.namespace for each in found} == containers


def launch(site: Site, words: str, *options: str) -> Ran:
    """hpcwrap-launch from a step on n1 of a job on both nodes, typed at as a shell has it."""
    script = f"[ $(uname -n) = n1 ] || exit 0; hpcwrap-launch {words}"
    srun = ["srun", "-N2", "-n2", "--container=busybox-1", *options, "/bin/sh", "-c", script]
    return site.alice(*srun, stdin="typed\n")


def test_a_command_on_another_node_is_as_with_ssh(site: Site) -> None:
    ran = launch(site, "-x -o Port=9 alice@n2.cluster 'echo a  b' \\; 'uname -n; cat; exit 7'")
    assert ran.stdout == "a b\nn2\ntyped\n"
    assert ran.code == 7


def test_a_command_may_have_no_input(site: Site) -> None:
    ran = launch(site, "-n n2 'cat; echo $HPCWRAP_CONTAINER; grep -c DEMO /proc/self/environ'")
    assert re.fullmatch(r"busybox-1@sha256:\w+\n1\n", ran.stdout)


def test_it_stays_in_its_job_whatever_the_user_unsets(site: Site) -> None:
    line = "unset SLURM_JOB_ID SLURM_JOBID; hpcwrap-launch n2 'echo $SLURM_JOB_ID; ls -d /.hpcwrap'"
    job = site.batch(f"#!/bin/sh\n{line}\n", "--container=busybox-1", "-N2")
    assert job.output.split() == [job.id, "/.hpcwrap"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("n7 id", "cannot launch on n7: it is not a node of this job"),
        ("bob@n2 id", "cannot run as bob on another node"),
        ("-l bob n2 id", "cannot run as bob on another node"),
        ("n2", "usage: hpcwrap-launch"),
        ("-p", "cannot read the option -p: its value is missing"),
        ("-? n2 id", "cannot use ssh's option -?"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(site: Site, words: str, sentence: str) -> None:
    ran = launch(site, words)
    assert sentence in ran.stderr
    assert ran.code == 255
    assert ran.stdout == ""


def test_an_option_that_slurm_adds_for_srun_is_no_harm(site: Site) -> None:
    """HYDRA_LAUNCHER_EXTRA_ARGS since 23.11."""
    assert launch(site, "-x --external-launcher n2 uname -n").stdout == "n2\n"


def test_its_use_is_said(site: Site) -> None:
    ran = launch(site, "--help")
    usage = "usage: hpcwrap-launch [OPTION...] [USER@]HOST COMMAND...\n"
    assert (ran.code, ran.stdout) == (0, usage)


def test_the_users_own_agent_wins(site: Site) -> None:
    line = "echo $OMPI_MCA_plm_rsh_agent $PRTE_MCA_plm_ssh_agent"
    srun = ["srun", "-n1", "--container=busybox-1", "/bin/sh", "-c", line]
    ran = site.alice("env", "OMPI_MCA_plm_rsh_agent=mine", *srun)
    assert ran.stdout == f"mine {LAUNCH}\n"
