"""Sessions in jobs, condor_ssh_to_job; and what of a job's variables is loaded on the host."""

from __future__ import annotations

import re
import shlex
from typing import Dict, Iterator, List

import pytest
from cluster_site import NODES, Ran
from driver import LONG
from driver_htcondor import HtCondor
from submitting import TRANSFER, Jobs

pytestmark = pytest.mark.htcondor

NAMES = ("image", "in", "words", "dir", "home", "user", "ns", "cgroup")
LOOK = """\
echo "image=$(cat /etc/demo-image 2>/dev/null)"; echo "in=${HPCWRAP_CONTAINER%@*}"
echo "words=$WORDS"; echo "dir=$PWD"; echo "home=$HOME"; echo "user=$(id -un)"
echo "ns=$(readlink /proc/self/ns/mnt)"; echo "cgroup=$(tr "\\n" " " </proc/self/cgroup)"
"""
STAY = f"""{LOOK}cp /proc/self/cgroup /home/alice/only-$1.begun
until test -e /home/alice/only-$1.end; do sleep 0.2; done
"""
SPY = """\
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void tell(void)
{
    char line[200];
    int file = open("/home/alice/spied", O_WRONLY | O_APPEND | O_CREAT, 0644);
    long length = readlink("/proc/self/ns/mnt", line, sizeof line - 1);
    line[length < 0 ? 0 : length] = '\\n';
    if (write(file, line, (length < 0 ? 0 : length) + 1) > 0)
        close(file);
}
"""


@pytest.fixture(scope="module")
def jobs(pool: HtCondor) -> Jobs:
    """Jobs that stay until they are told to end."""
    made = Jobs(pool)
    begin(made, "inside", "container = debian-12", "environment = \"WORDS='a b'\"")
    begin(made, "busy", "container = busybox-1")
    begin(made, "moved", "container = debian-12", *TRANSFER)
    begin(made, "bare", "container = none")
    return made


def begin(jobs: Jobs, name: str, *lines: str) -> None:
    assert jobs.submit(name, STAY, f"arguments = {name}", *lines) == ""


@pytest.fixture(scope="module", autouse=True)
def end(jobs: Jobs) -> Iterator[None]:
    yield
    for name in jobs.ids:
        jobs.pool.alice("touch", f"only-{name}.end")
    for name in jobs.ids:
        jobs.ended(name)


def wait_for(jobs: Jobs, name: str) -> str:
    """The number of a job that runs."""
    begun = ("ls", f"only-{name}.begun")
    assert jobs.pool.eventually(lambda: jobs.pool.alice(*begun).code == 0, LONG)
    return jobs.ids[name]


def session(jobs: Jobs, name: str, command: str = "", stdin: str = "") -> Ran:
    """condor_ssh_to_job, on a terminal; the schedd knows a moment later that a job runs."""
    words = shlex.join(["condor_ssh_to_job", wait_for(jobs, name), *([command] if command else [])])
    run = ("env", "TERM=dumb", "timeout", "60", "script", "-qec", words, "/dev/null")
    tried: List[Ran] = []

    def has_come() -> bool:
        tried.append(jobs.pool.alice(*run, stdin=stdin))
        return "Use -auto-retry" not in tried[-1].stdout

    assert jobs.pool.eventually(has_come)
    print(tried[-1])
    return tried[-1]._replace(stdout=tried[-1].stdout.replace("\r", ""))


def look(text: str) -> Dict[str, str]:
    return dict(re.findall(rf"^({'|'.join(NAMES)})=(.*)$", text, re.M))


def output(jobs: Jobs, name: str) -> str:
    return jobs.pool.alice("cat", f"only-{name}.out").stdout


def test_a_command_is_inside_as_the_job_is(jobs: Jobs) -> None:
    """With its variables, where it began, and held to its limits."""
    ran = session(jobs, "inside", f"{LOOK} exit 7")
    assert ran.code == 7
    assert look(ran.stdout) == look(output(jobs, "inside"))
    assert look(ran.stdout)["image"] == "debian-12"


@pytest.mark.parametrize(("name", "image"), [("inside", "debian-12"), ("busy", "busybox-1")])
def test_a_login_is_inside_on_a_terminal(jobs: Jobs, name: str, image: str) -> None:
    """The second image has no bash, which is alice's shell."""
    ran = session(jobs, name, stdin=f"{LOOK}tty\nexit 3\n")
    found = look(ran.stdout)
    assert (found["image"], found["dir"], ran.code) == (image, "/home/alice", 3)
    assert re.search("^/dev/pts/", ran.stdout, re.M)


def test_with_file_transfer_it_is_in_the_scratch_directory(jobs: Jobs) -> None:
    found = look(session(jobs, "moved", LOOK).stdout)
    assert found["image"] == "debian-12"
    assert re.fullmatch("/var/lib/condor/execute/dir_[0-9]+", found["dir"])
    assert found["home"] == found["dir"]


def test_without_a_container_it_is_htcondors(jobs: Jobs) -> None:
    found = look(session(jobs, "bare", LOOK.replace("\n", ";")).stdout)
    assert (found["image"], found["in"], found["dir"]) == ("", "", "/home/alice")


def test_what_cannot_be_inside_is_refused(jobs: Jobs) -> None:
    """The helper does not answer: nothing runs on the host."""
    socket, away = "/run/hpcwrap/helper.sock", "/run/hpcwrap/helper.away"
    wait_for(jobs, "inside")
    for node in NODES:
        jobs.pool.root(node, "mv", socket, away)
    try:
        ran = session(jobs, "inside", "touch session-ran")
    finally:
        for node in NODES:
            jobs.pool.root(node, "mv", away, socket)
    assert ran.code == 125
    assert "cannot reach the helper" in ran.stdout
    assert jobs.pool.alice("ls", "session-ran").code != 0


def test_nothing_that_a_job_preloads_is_loaded_on_the_host(jobs: Jobs) -> None:
    """Each process that loads it says in which mount namespace it is."""
    pool = jobs.pool
    pool.alice("rm", "-f", "spied")
    pool.alice("tee", "spy.c", stdin=SPY)
    assert pool.alice("cc", "-shared", "-fPIC", "-o", "spy.so", "spy.c").code == 0
    preload = 'environment = "LD_PRELOAD=/home/alice/spy.so"'
    assert jobs.submit("spied", LOOK, "container = debian-12", preload) == ""
    inside = look(jobs.output("spied"))["ns"]
    spied = pool.alice("cat", "spied").stdout.split()
    assert set(spied) == {inside}, f"host: {pool.host_namespaces()}"
