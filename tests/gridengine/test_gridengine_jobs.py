"""What only Grid Engine has: shells, qrsh, the filter, shepherds; and what users may try."""

from __future__ import annotations

import json
import re
from typing import Dict, List, NamedTuple

import pytest
from cluster_site import NODES
from driver_gridengine import GridEngine

pytestmark = pytest.mark.gridengine

LOOK = 'echo "@ $(uname -n) $(readlink /proc/self/ns/mnt) ${HPCWRAP_CONTAINER%@*}"\n'
SHELL = 'echo "$0 $#($1)" | sed "s#.*/job_scripts/[0-9]*#script#"; readlink /proc/$$/exe\n'
OUTSIDE = "/home/alice/ran-outside"
FILTER = "/opt/hpcwrap/share/hpcwrap/submit/gridengine.sh"
INSIDE = ("-l", "container=debian-12")


class Work(NamedTuple):
    """A job: the words of qsub, and its script."""

    words: tuple[str, ...]
    script: str = LOOK


JOBS: Dict[str, Work] = {
    "posix": Work((*INSIDE, "-q", "posix.q", "-S", "/bin/bash"), SHELL + "shopt login_shell\n"),
    "posix: no shell": Work((*INSIDE, "-q", "posix.q"), SHELL),
    "script from stdin": Work((*INSIDE, "-q", "stdin.q"), SHELL),
    "without #!": Work((*INSIDE, "-q", "all.q"), SHELL),
    "binary": Work((*INSIDE, "-q", "all.q", "-b", "y", "sh", "-c", 'echo "$0 $#($1)"', "a b", "c")),
    "project": Work(("-P", "biology", "-q", "all.q")),
    "client filter": Work(("-jsv", FILTER, *INSIDE, "-q", "all.q")),
    "variable": Work(("-v", "HPCWRAP_REQUEST=none", *INSIDE, "-q", "all.q")),
    "python": Work(
        (
            *INSIDE,
            *("-q", "all.q", "-v"),
            "PYTHONPATH={0},PYTHONSTARTUP={0}/os.py,BASH_ENV={0}/env,ENV={0}/env,"
            "LD_PRELOAD={0}/no.so,PATH={0}:/bin".format("/home/alice/evil"),
        )
    ),
    "tasks": Work(
        (*INSIDE, "-q", "all.q", "-pe", "by-2", "4"),
        "for host in n1 n2; do\n"
        f"    qrsh -inherit $host '{LOOK.strip()}; exit 5'; echo code $?\n"
        "    echo words | qrsh -inherit $host cat\n"
        "    qrsh -inherit -V $host pwd\n"
        "done\n"
        "qstat -j $JOB_ID | grep -c job_number\n",
    ),
    "mpich": Work(
        (*INSIDE, "-q", "all.q", "-pe", "by-2", "4"),
        f"hpcwrap-launch n2 '{LOOK.strip()}'; hpcwrap-launch n3 true; echo code $?\n",
    ),
}


class Ended(NamedTuple):
    """A job's output, errors included, and its exit code."""

    output: str
    code: int


class Jobs:
    """All of JOBS, submitted at once."""

    def __init__(self, grid: GridEngine) -> None:
        self.grid = grid
        self.said: Dict[str, str] = {}
        self.ids = {name: self.submit(name, work) for name, work in JOBS.items()}

    def submit(self, name: str, work: Work) -> str:
        file = self.file(name)
        words = ("-terse", "-j", "y", "-o", file, "-wd", "/home/alice", *work.words)
        self.grid.alice("rm", "-f", file)
        ran = self.grid.alice("qsub", *words, stdin="" if "-b" in words else work.script)
        self.said[name] = ran.stdout + ran.stderr
        return ran.stdout.strip()

    def file(self, name: str) -> str:
        return f"/home/alice/ge-{re.sub('[^a-z]+', '-', name)}.out"

    def __getitem__(self, name: str) -> Ended:
        job_id = self.ids[name]
        assert job_id, self.said[name]
        gone = self.grid.eventually(
            lambda: self.grid.root("ctl", "qstat", "-j", job_id).code != 0, 90
        )
        assert gone, self.grid.root("ctl", "qstat", "-j", job_id).stdout
        text = self.grid.root("ctl", "qacct", "-j", job_id).stdout
        code = int(re.findall(r"^exit_status +(\d+)", text, re.M)[-1])
        return Ended(self.grid.alice("cat", self.file(name)).stdout, code)


@pytest.fixture(scope="session")
def jobs(grid: GridEngine) -> Jobs:
    evil = "import os, builtins\nopen('/home/alice/ran-as-'+str(os.geteuid()), 'w')\n"
    grid.alice("mkdir", "-p", "evil")
    for name in ("hpcwrap.py", "os.py", "sitecustomize.py"):
        grid.alice("tee", f"evil/{name}", stdin=evil)
    grid.alice("tee", "evil/env", stdin=f"id >{OUTSIDE}\n")
    grid.add_settings("project", "defaults: {gridengine: {project: {biology: debian-12}}}\n")
    grid.tell_scheduler()
    return Jobs(grid)


def held(grid: GridEngine, job_id: str) -> str:
    return grid.root("ctl", "qstat", "-j", job_id).stdout


def images(output: str) -> List[str]:
    """What each line of LOOK says of its container."""
    return re.findall(r"^@ \S+ \S+ (\S+)$", output, re.M)


# ---- shells and commands ----


def test_a_posix_queue_starts_the_shell_of_the_image(jobs: Jobs) -> None:
    lines = jobs["posix"].output.splitlines()
    assert lines[:2] == ["script 0()", "/usr/bin/bash"]
    assert lines[2].split() == ["login_shell", "on"]


def test_a_shell_that_the_image_does_not_have(jobs: Jobs) -> None:
    job = jobs["posix: no shell"]
    assert "cannot find the command /bin/csh in the container debian-12" in job.output
    assert job.code == 127


def test_a_script_from_stdin(jobs: Jobs) -> None:
    assert jobs["script from stdin"].output.splitlines() == ["/bin/sh 0()", "/usr/bin/dash"]


def test_a_script_that_names_no_interpreter(jobs: Jobs) -> None:
    assert jobs["without #!"].output.splitlines() == ["script 0()", "/usr/bin/dash"]


def test_the_words_of_a_command_stay_as_they_are(jobs: Jobs) -> None:
    assert jobs["binary"].output == "a b 1(c)\n"


# ---- tasks of parallel jobs ----


def test_tasks_join_the_container_of_their_node(jobs: Jobs) -> None:
    output = jobs["tasks"].output
    assert images(output) == ["debian-12", "debian-12"]
    assert re.findall(r"^@ (\S+)", output, re.M) == list(NODES)
    assert output.count("code 5\n") == output.count("words\n") == 2
    assert output.count("/home/alice\n") == 2


def test_grid_engines_commands_work_inside(jobs: Jobs) -> None:
    assert jobs["tasks"].output.splitlines()[-1] == "1"


def test_the_launcher_for_mpich(jobs: Jobs) -> None:
    job = jobs["mpich"].output
    assert images(job) == ["debian-12"]
    assert job.endswith("code 255\n")
    assert "cannot launch on n3: it is not a node of this job" in job


# ---- who decides ----


def test_the_default_of_a_project(jobs: Jobs) -> None:
    assert images(jobs["project"].output) == ["debian-12"]


def test_the_filter_as_a_clients(jobs: Jobs) -> None:
    assert images(jobs["client filter"].output) == ["debian-12"]


def test_the_variable_is_the_filters(jobs: Jobs, grid: GridEngine) -> None:
    """What a user makes of it is a request like any other."""
    assert images(jobs["variable"].output) == ["debian-12"]
    ran = grid.alice("qsub", "-v", "HPCWRAP_REQUEST=bobs", "-b", "y", "true")
    assert "hpcwrap: alice may not use the environment bobs" in ran.stderr


def test_nothing_of_the_users_runs_in_the_hooks(jobs: Jobs, grid: GridEngine) -> None:
    assert images(jobs["python"].output) == ["debian-12"]
    assert "ran-as-" not in grid.alice("ls").stdout
    assert grid.alice("ls", OUTSIDE).code != 0


def test_the_context_says_what_the_job_gets(jobs: Jobs, grid: GridEngine) -> None:
    """With the digest, once the image is there and the table knows it."""
    assert jobs["posix"].code == 0
    grid.tell_scheduler()
    held = grid.alice("qsub", "-terse", "-h", *INSIDE, "-b", "y", "true").stdout.strip()
    text = grid.alice("qstat", "-j", held).stdout
    grid.alice("qdel", held)
    assert re.search(r"context: +hpcwrap=debian-12@sha256:[0-9a-f]{64}$", text, re.M)
    assert not re.search(r"hard resource_list:.*container", text)


def test_a_job_cannot_be_altered_past_the_filter(grid: GridEngine) -> None:
    held = grid.alice("qsub", "-terse", "-h", *INSIDE, "-b", "y", "true").stdout.strip()
    for words in (("-l", "container=bobs"), ("-v", "HPCWRAP_REQUEST=bobs")):
        assert grid.alice("qalter", *words, held).code != 0
    grid.alice("qdel", held)


def test_a_soft_request_is_refused(grid: GridEngine) -> None:
    ran = grid.alice("qsub", "-soft", *INSIDE, "-b", "y", "true")
    assert "hpcwrap: cannot take -l container as a soft request" in ran.stderr


def test_images_are_the_sites_business(grid: GridEngine) -> None:
    ran = grid.alice("qsub", "-l", "container=docker://registry:5000/x", "-b", "y", "true")
    assert "this site allows its environments only" in ran.stderr


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("line", ["job_owner=bob", "job_owner bob"])
def test_a_line_feed_makes_nobody_else(grid: GridEngine, line: str) -> None:
    """execd writes the working directory into the shepherd's configuration as it is."""
    grid.alice("mkdir", "-p", f"cwd\n{line}")
    command = f"cd '/home/alice/cwd\n{line}' && qsub -terse -cwd -o /dev/null -j y -b y id"
    job_id = grid.alice("bash", "-c", command).stdout.strip()
    assert grid.eventually(lambda: "error reason" in held(grid, job_id))
    assert "cannot start the job: its configuration has job_owner twice" in held(grid, job_id)


@pytest.mark.usefixtures("well")
def test_a_long_word_makes_nobody_else(grid: GridEngine) -> None:
    """Shepherds read 100 000 bytes and take what follows for another line."""
    word = "$(head -c 99990 /dev/zero | tr '\\0' x)job_owner=bob"
    command = f"qsub -terse -o /dev/null -j y -b y true {word}"
    job_id = grid.alice("bash", "-c", command).stdout.strip()
    assert grid.eventually(lambda: "error reason" in held(grid, job_id))
    assert "has a line of job_arg1 that shepherds take for two" in held(grid, job_id)


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("words", [("qrsh", "rsh_daemon"), ("qlogin", "qlogin_daemon")])
def test_a_line_feed_has_nothing_started_as_root(grid: GridEngine, words: tuple[str, str]) -> None:
    """A command of such a name is a login to shepherds, and its daemon is root's."""
    command, name = words
    output = f"/home/alice/x\n{name}=/home/alice/evil/daemon"
    job_id = grid.alice("qsub", "-terse", "-b", "y", "-o", output, command).stdout.strip()
    assert grid.eventually(lambda: "error reason" in held(grid, job_id))
    assert f"its configuration has {name} where execd writes none" in held(grid, job_id)


def test_a_line_feed_gives_nobody_anothers_answer(grid: GridEngine) -> None:
    """The filter is one for all: what it says of a job must not be read as said of the next."""
    forged = grid.alice("qsub", "-o", "/home/alice/x\nBEGIN", *INSIDE, "-b", "y", "true")
    assert forged.code == 1
    assert "one of its values has a line of Grid Engine's words" in forged.stderr
    for _ in range(2):
        refused = grid.bob("qsub", "-l", "container=nosuch", "-b", "y", "true")
        assert "there is no environment 'nosuch'" in refused.stderr
        taken = grid.bob("qsub", "-h", "-terse", *INSIDE, "-b", "y", "true")
        assert taken.code == 0
        grid.bob("qdel", taken.stdout.strip())


# ---- what goes wrong ----


def begin(grid: GridEngine, node: str, script: str, *words: str) -> str:
    """A job that has begun; its id."""
    mark = grid.new_name()
    job_id = grid.alice(
        *("qsub", "-terse", "-j", "y", "-o", f"/home/alice/{mark}.out", *INSIDE, *words),
        *("-q", f"all.q@{node}"),
        stdin=f"touch {mark}.begun\n{script}",
    ).stdout.strip()
    assert grid.eventually(lambda: grid.alice("ls", f"{mark}.begun").code == 0, 60)
    return job_id


def test_memory_is_counted_by_slots(grid: GridEngine) -> None:
    job_id = begin(grid, "n1", "sleep 54323\n", "-pe", "smp", "2", "-l", "h_rss=100M")
    note = grid.root("n1", "cat", f"/run/hpcwrap/jobs/gridengine-{job_id}-0/cgroups").stdout
    grid.alice("qdel", job_id)
    assert json.loads(note)["limits"]["memory"] == 200 << 20


def test_a_notified_job_ends_by_itself(grid: GridEngine) -> None:
    job_id = begin(grid, "n1", "trap 'exit 3' USR2\nsleep 54321 & wait\n", "-notify")
    grid.alice("qdel", job_id)
    assert grid.eventually(lambda: grid.root("ctl", "qstat", "-j", job_id).code != 0, 60)
    text = grid.root("ctl", "qacct", "-j", job_id).stdout
    assert re.search(r"^exit_status +3\b", text, re.M)


HOLD = """\
import fcntl, os, time
file = open("/run/hpcwrap/turns", "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
while os.path.exists("/tmp/hold"):
    time.sleep(0.1)
"""


@pytest.mark.usefixtures("well")
def test_a_job_deleted_while_its_container_is_made(grid: GridEngine) -> None:
    """The prolog waits for its turn, which somebody has."""
    begin(grid, "n1", "")  # so that there are turns
    grid.root("n1", "touch", "/tmp/hold")
    grid.root("n1", "sh", "-c", f"python3 -c '{HOLD}' >/dev/null 2>&1 &")
    words = ("-q", "all.q@n1", "-j", "y", "-o", "/dev/null", "-b", "y", "touch", OUTSIDE)
    job_id = grid.alice("qsub", "-terse", *INSIDE, *words).stdout.strip()
    waits = "main..hooks.prolog"
    assert grid.eventually(lambda: grid.root("n1", "pgrep", "-f", waits).code == 0, 60)
    grid.alice("qdel", job_id)
    assert grid.eventually(lambda: f"{job_id} " in states(grid, "dr"), 30)
    grid.root("n1", "rm", "/tmp/hold")
    assert grid.eventually(lambda: grid.root("ctl", "qstat", "-j", job_id).code != 0, 60)
    assert grid.alice("ls", OUTSIDE).code != 0
    assert grid.eventually(lambda: not grid.leftovers("n1"))


def states(grid: GridEngine, state: str) -> str:
    """The lines of qstat with a state."""
    lines = grid.root("ctl", "qstat", "-u", "*").stdout.splitlines()
    return "\n".join(line for line in lines if f" {state} " in line)


@pytest.mark.usefixtures("well")
def test_a_killed_shepherd_leaves_nothing(grid: GridEngine) -> None:
    job_id = begin(grid, "n1", "sleep 54322 & exec sleep 54322\n")
    assert len(grid.root("n1", "pgrep", "-f", "sleep 54322").stdout.split()) == 2
    shepherd = grid.root(
        "n1", "sh", "-c", f"cat /var/spool/gridengine/execd/n1/active_jobs/{job_id}.1/pid"
    )
    grid.root("n1", "kill", "-KILL", shepherd.stdout.strip())
    assert grid.eventually(lambda: not grid.leftovers("n1"))
    assert grid.root("n1", "pgrep", "-f", "sleep 54322").stdout == ""


def test_the_next_job_mends_what_a_killed_waiter_left(grid: GridEngine) -> None:
    job_id = begin(grid, "n2", "sleep 1\n")
    grid.root("n2", "pkill", "-KILL", "-f", f"gridengine-{job_id}-0$")
    assert grid.eventually(lambda: grid.root("ctl", "qstat", "-j", job_id).code != 0, 60)
    assert grid.leftovers("n2")
    begin(grid, "n2", "")
    assert grid.eventually(lambda: not grid.leftovers("n2"), 60)


@pytest.mark.usefixtures("well")
def test_a_broken_installation_stops_no_queue(grid: GridEngine) -> None:
    """Nobody can tell which jobs want a container: none runs, and all can be let go later."""
    library = "/opt/hpcwrap/lib"
    grid.root("ctl", "mv", library, f"{library}.away")
    try:
        words = ("qsub", "-terse", "-b", "y", "-j", "y", "-o", "/dev/null", "touch", OUTSIDE)
        job_id = grid.alice(*words).stdout.strip()
        assert grid.eventually(lambda: "error reason" in held(grid, job_id), 60)
    finally:
        grid.root("ctl", "mv", f"{library}.away", library)
    assert "hpcwrap: ModuleNotFoundError" in held(grid, job_id)
    assert "all.q" not in grid.trouble()
    assert grid.alice("ls", OUTSIDE).code != 0
    grid.root("ctl", "qmod", "-cj", job_id)
    assert grid.eventually(lambda: grid.alice("ls", OUTSIDE).code == 0, 60)
    grid.alice("rm", OUTSIDE)


@pytest.mark.usefixtures("well")
def test_an_unfit_node_gives_its_jobs_to_others(grid: GridEngine) -> None:
    """And to no more of them: the queue on that node is in the state E."""
    turns = "/run/hpcwrap/turns"
    grid.root("n1", "sh", "-c", f"rm -f {turns} && mkdir -p {turns}")
    try:
        mark = grid.new_name()
        output = ("-j", "y", "-o", f"/home/alice/{mark}")
        words = ("-q", "all.q@n1,all.q@n2", *output, "-b", "y", "uname", "-n")
        for _ in range(3):
            grid.alice("qsub", *INSIDE, *words)
        assert grid.eventually(lambda: grid.alice("cat", mark).stdout.split() == ["n2"] * 3, 90), (
            grid.trouble()
        )
        assert "all.q@n1: E" in grid.trouble()
    finally:
        grid.root("n1", "rmdir", turns)


# ---- setup ----


def test_a_site_that_is_set_up_is_well(grid: GridEngine) -> None:
    ran = grid.root("ctl", "hpcwrap", "setup", "gridengine", "--check")
    assert ran.code == 0, ran.stdout


def test_what_is_missing_is_told(grid: GridEngine) -> None:
    """A host's own shepherd_cmd wins over the global one."""
    own = "mkdir -p /tmp/own && echo shepherd_cmd none >/tmp/own/n1 && qconf -Aconf /tmp/own/n1"
    grid.root("ctl", "sh", "-c", own)
    try:
        ran = grid.root("ctl", "hpcwrap", "setup", "gridengine", "--check")
    finally:
        grid.root("ctl", "qconf", "-dconf", "n1")
    assert ran.code == 3
    assert re.search(r"wrong +conf of n1 +shepherd_cmd", ran.stdout)
