"""mpirun in the parallel universe: its daemons start in the containers of the other nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Iterator

import pytest
from cluster_site import NODES
from driver import LONG
from driver_htcondor import HtCondor

pytestmark = pytest.mark.htcondor

IMAGE = "mpirun-12"
PROGRAM = Path(__file__).parents[1] / "slurm" / "mpi_ranks.py"
LINES = f"""universe = parallel
machine_count = 2
container = {IMAGE}
request_memory = 200
+ParallelShutdownPolicy = "WAIT_FOR_ALL"
"""
TRANSFER = f"""should_transfer_files = yes
when_to_transfer_output = on_exit
transfer_input_files = {PROGRAM.name}
"""
# One rank of MPICH a node, and by TCP: two nodes on one machine look like one to UCX, and Debian's
# 4.0.2 hangs in MPI_Finalize now and then where ranks share memory by it.
OPEN_MPI = "timeout 40 mpirun.openmpi -npernode 1 python3 mpi_ranks.py openmpi"
MPICH = "env UCX_TLS=tcp,self timeout 40 mpirun.mpich -n 2 -ppn 1 python3 mpi_ranks.py mpich"
OTHER = 'other=$(sed -n "\\$s/:.*//p" $HYDRA_HOST_FILE)'
MANY = f"""{OTHER}
echo "== hosts"; cat $OMPI_MCA_orte_default_hostfile $HYDRA_HOST_FILE
echo "== launch"; hpcwrap-launch $other.cluster "echo a  b; uname -n; wc -c; exit 7"; echo $?
echo "== stranger"; hpcwrap-launch n7 id; echo $?; hpcwrap-launch $(uname -n) uname -n
"""
BOTH = f"""echo "== looks"; echo "$(uname -n) $(readlink /proc/self/ns/mnt)"
echo "== openmpi"; hpcwrap-mpi {OPEN_MPI}
echo "== mpich"; hpcwrap-mpi {MPICH}
"""
SHARED = f"""{BOTH}
hpcwrap-mpi sh -c '{MANY}'
echo "== own"
OMPI_MCA_orte_default_hostfile=mine hpcwrap-mpi sh -c 'echo $OMPI_MCA_orte_default_hostfile; exit 9'
echo $?
echo "== outside"; hpcwrap-launch n2 id; echo $?
echo "== alone"; [ $_CONDOR_PROCNO != 0 ] || hpcwrap-mpi -t 1 true; echo $?
echo "== end"
"""


def submit(pool: HtCondor, name: str, script: str, lines: str) -> str:
    """Submit a job of two nodes; its number."""
    path = f"/home/alice/{name}"
    pool.alice("sh", "-c", f"cat >{path}.sh; chmod 755 {path}.sh", stdin=f"#!/bin/sh\n{script}")
    files = "".join(
        f"{key} = {path}.{end}.$(Node)\n" for key, end in (("output", "out"), ("error", "err"))
    )
    text = f"executable = {path}.sh\n{files}{LINES}{lines}queue\n"
    ran = pool.alice("condor_submit", "-terse", "-", stdin=text)
    assert ran.code == 0, ran.stderr
    return ran.stdout.partition(".")[0].strip()


def has_ended(pool: HtCondor, job: str) -> bool:
    return not pool.root("ctl", "condor_q", job, "-af", "ClusterId").stdout.strip()


def sections(text: str) -> Dict[str, str]:
    return dict(re.findall(r"^== (\S+)\n((?:(?!== ).*\n)*)", text, re.M))


@pytest.fixture(scope="module")
def image(pool: HtCondor) -> Iterator[None]:
    """An environment with Open MPI and MPICH, and the program."""
    pool.need("image", "build", IMAGE)
    pool.need("image", "push", IMAGE)
    pool.add_environment(IMAGE, f"image: registry:5000/{IMAGE}:latest\n")
    pool.alice("tee", PROGRAM.name, stdin=PROGRAM.read_text())
    yield
    pool.remove_environment(IMAGE)
    pool.tell_scheduler()


@pytest.fixture(scope="module")
def jobs(pool: HtCondor, image: None) -> Dict[str, Dict[str, str]]:
    """Two jobs, what each node said and complained of: out.NODE and err.NODE."""
    submitted = {
        "shared home": submit(pool, "mpi-home", SHARED, ""),
        "file transfer": submit(pool, "mpi-transfer", BOTH, TRANSFER),
    }
    assert pool.eventually(lambda: all(has_ended(pool, job) for job in submitted.values()), LONG)
    found = {name: read(pool, f"mpi-{name.split()[-1]}") for name in submitted}
    print(found)
    return found


def read(pool: HtCondor, name: str) -> Dict[str, str]:
    ends = [f"{end}.{number}" for number in range(len(NODES)) for end in ("out", "err")]
    return {end: pool.alice("cat", f"{name}.{end}").stdout for end in ends}


@pytest.fixture(scope="module")
def texts(jobs: Dict[str, Dict[str, str]]) -> Dict[str, str]:
    return jobs["shared home"]


def containers(texts: Dict[str, str]) -> Dict[str, str]:
    """Node → mount namespace of its script."""
    looks = [sections(texts[f"out.{number}"])["looks"].split() for number in range(len(NODES))]
    return dict(looks)


@pytest.mark.parametrize("way", ["openmpi", "mpich"])
@pytest.mark.parametrize("files", ["shared home", "file transfer"])
def test_all_ranks_are_in_the_jobs_containers(
    jobs: Dict[str, Dict[str, str]], files: str, way: str
) -> None:
    texts = jobs[files]
    said = sections(texts["out.0"])[way]
    ranks = sorted(re.findall(r"^rank (\d) (\d) (\S+) (\S+)$", said, re.M))
    inside = containers(texts)
    assert [(rank, total) for rank, total, *_ in ranks] == [("0", "1"), ("1", "1")]
    assert {node: namespace for *_, node, namespace in ranks} == inside
    assert set(inside) == set(NODES)


def test_a_command_on_another_node_is_as_with_ssh(texts: Dict[str, str]) -> None:
    """Its output is with that of the other node's script; it reads nothing."""
    assert sections(texts["out.0"])["launch"] == "7\n"
    assert f"a b\n{list(containers(texts))[1]}\n0\n" in texts["out.1"]


def test_mpi_is_told_the_nodes_unless_the_user_does(texts: Dict[str, str]) -> None:
    said = sections(texts["out.0"])
    first, second = containers(texts)
    assert said["hosts"] == f"{first} slots=1\n{second} slots=1\n{first}:1\n{second}:1\n"
    assert said["own"].startswith("mine\n")


def test_what_cannot_be_is_refused_with_a_sentence(texts: Dict[str, str]) -> None:
    said, errors = sections(texts["out.0"]), texts["err.0"]
    assert said["stranger"] == f"255\n{next(iter(containers(texts)))}\n"
    assert "cannot launch on n7: it is not a node of this job" in errors
    assert said["outside"] == "255\n"
    assert "cannot launch on n2: call this by `hpcwrap-mpi COMMAND`" in errors


def test_the_exit_code_is_the_commands(texts: Dict[str, str]) -> None:
    assert sections(texts["out.0"])["own"].endswith("9\n")


def test_a_node_that_does_not_come_is_told(texts: Dict[str, str]) -> None:
    assert sections(texts["out.0"])["alone"] == "125\n"
    assert "cannot run on 2 nodes: of these there is no word after 1 s: 1" in texts["err.0"]


def test_the_scripts_of_the_other_nodes_go_on(texts: Dict[str, str]) -> None:
    assert "end" in sections(texts["out.1"])


# ---- while it runs ----


def daemons(pool: HtCondor, node: str) -> str:
    """What mpirun started on a node."""
    return pool.root(node, "pgrep", "-f", "orted|^sleep 98764").stdout


@pytest.fixture
def running(pool: HtCondor, image: None) -> Iterator[str]:
    """A job whose daemons run on both nodes; where its nodes write to each other."""
    job = submit(pool, "mpi-long", "hpcwrap-mpi mpirun.openmpi sleep 98764\n", "")
    find = ("find", "/var/spool/condor", "-name", "hpcwrap.*.nodes")
    try:
        assert pool.eventually(lambda: all(daemons(pool, node) for node in NODES), LONG)
        yield pool.root("ctl", *find).stdout.strip()
    finally:
        pool.alice("condor_rm", job)
        assert pool.eventually(lambda: has_ended(pool, job), LONG)


def test_another_user_starts_nothing(pool: HtCondor, running: str) -> None:
    assert running.endswith(".nodes")
    for words in (("cat", running), ("tee", running.replace(".nodes", ".start.1"))):
        assert "Permission denied" in pool.bob(*words).stderr


def test_nothing_is_left_of_one_that_was_removed(pool: HtCondor) -> None:
    """After the test above."""
    assert pool.root("ctl", "find", "/var/spool/condor", "-name", "hpcwrap.*").stdout == ""
    for node in NODES:
        assert pool.eventually(lambda node=node: not daemons(pool, node))
        assert pool.eventually(lambda node=node: not pool.leftovers(node), 30)
