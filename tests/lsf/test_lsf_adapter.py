"""What a job of LSF's says of itself, read into our words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest
from installation import RECORDINGS, run

from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.hooks import enter_lsf
from hpcwrap.job import User
from hpcwrap.request import Request
from hpcwrap.schedulers import load, lsf

ALICE = User("alice", 2001, 2001, (2001,), "/home/alice")
VARIABLES = {
    "LSB_JOBID": "12",
    "LSB_JOBINDEX": "3",
    "LSB_QUEUE": "normal",
    "LSB_MCPU_HOSTS": "n1 4 n2 2 ",
    "LS_SUBCWD": "/home/alice/",
    "HPCWRAP_REQUEST": "debian-12",
}


def variables(**changes: str) -> Dict[str, str]:
    return {**VARIABLES, **changes}


def test_job_and_request() -> None:
    job, request = lsf.read_caller(variables(LSB_APPLICATION_NAME="mpi"), ALICE)
    assert (job.id, job.scheduler, job.user) == ("lsf-12-3", "lsf", ALICE)
    assert (job.workdir, job.nodes) == ("/home/alice", 2)
    assert job.node == os.uname().nodename.split(".")[0]
    assert dict(job.places) == {"queue": "normal", "application": "mpi"}
    assert request == Request("debian-12", "$HPCWRAP_REQUEST")


def test_a_job_that_asks_for_nothing() -> None:
    assert lsf.read_caller(variables(HPCWRAP_REQUEST=""), ALICE)[1].container is None


@pytest.mark.parametrize(
    "changes",
    [
        {"LSB_JOBID": "../../etc"},
        {"LSB_JOBID": ""},
        {"LSB_JOBID": "12-4"},
        {"LSB_JOBINDEX": "1 2"},
        {"LSB_JOBID": "1٢"},
        {"HPCWRAP_REQUEST": 'a" b'},
        {"HPCWRAP_REQUEST": "a\x1bb"},
    ],
)
def test_what_cannot_be_is_refused(changes: Dict[str, str]) -> None:
    with pytest.raises(UserError):
        lsf.read_caller(variables(**changes), ALICE)


@pytest.mark.parametrize("text", ["", "n1", "n1 x", "4 n1 n2"])
def test_hosts_that_are_none(text: str) -> None:
    assert lsf.host_slots(text) == ()
    assert lsf.read_caller(variables(LSB_MCPU_HOSTS=text), ALICE)[0].nodes == 1


def test_nothing_is_roots() -> None:
    adapter = load("lsf")
    for read in (adapter.read_prolog, adapter.read_job_id):
        with pytest.raises(SiteError):
            read(VARIABLES)


BJOBS = """
Job <58>, User <alice>, Status <RUN>, Queue <normal>, Command <echo>

 {headers}
 {values}
Sun Nov 22 12:43:08: Started on <n2>;
"""


@pytest.mark.parametrize(
    ("headers", "values", "limit"),
    [
        ("MEMLIMIT", " 65536 K", 64 << 20),
        ("CORELIMIT MEMLIMIT", "     0 K   1.5 G", 3 << 29),
        ("MEMLIMIT SWAPLIMIT", "  100 M     200 M", 100 << 20),
        ("SWAPLIMIT", "  100 M", 0),
        ("", "", 0),
    ],
)
def test_memory_limit(headers: str, values: str, limit: int) -> None:
    assert lsf.memory_limit(BJOBS.format(headers=headers, values=values)) == limit


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    for name in ("bsub", "lsrun", "unknown"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_commands(commands: Path) -> None:
    found = lsf.commands(Settings(lsf_commands=str(commands)))
    assert found is not None
    assert found.names == ("bsub", "lsrun")
    assert lsf.commands(Settings()) is None


def test_lsrun_where_there_is_no_blaunch(commands: Path) -> None:
    settings = Settings(lsf_commands=str(commands))
    found = lsf.launcher(settings, VARIABLES)
    assert found is not None
    assert found.words[:2] == ("/bin/sh", "-c")
    assert found.words[3:5] == (str(commands / "lsrun"), "%h")
    assert found.words[5].endswith("/enter/lsf-task.sh")
    assert found.nodes == ("n1", "n2")
    (commands / "blaunch").write_text("")
    (commands / "blaunch").chmod(0o755)
    found = lsf.launcher(settings, VARIABLES)
    assert found is not None
    assert found.words[:2] == (str(commands / "blaunch"), "%h")
    assert lsf.launcher(Settings(), VARIABLES) is None


LSRUN = """\
#!/bin/sh
# Ends with 0, whatever the task did, as volclava's does.
while [ "$1" != -- ]; do shift; done
shift
"$@"
exit 0
"""
TASK = """\
#!/bin/sh
shift
/bin/sh -c "$1"
code=$?
{end}
"""
TELLS = 'echo "hpcwrap-code-$LSB_JOBID $code" >&2'


@pytest.mark.parametrize(
    ("command", "end", "code"),
    [("exit 7", TELLS, 7), ("true", TELLS, 0), ("true", "", 255), ("echo no code 3 >&2", "", 255)],
)
def test_the_code_of_a_task(tmp_path: Path, command: str, end: str, code: int) -> None:
    """A task that told none has not run: mpirun would wait for ever."""
    for name, text in (("lsrun", LSRUN), ("task", TASK.format(end=end))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    found = lsf.launcher(Settings(lsf_commands=str(tmp_path)), VARIABLES)
    assert found is not None
    words = [{"%h": "n2", "%c": f"echo out; {command}"}.get(word, word) for word in found.words]
    words[5] = str(tmp_path / "task")
    ran = run(*words, environ=VARIABLES)
    assert (ran.code, ran.stdout) == (code, "out\n")
    assert "hpcwrap-code" not in ran.stderr


def test_only_what_is_one_line_is_spoken() -> None:
    told = enter_lsf.spoken(variables(LSB_QUEUE="two\nlines", OTHER="x"))
    assert told == {name: VARIABLES[name] for name in sorted(VARIABLES) if name != "LSB_QUEUE"}


def test_a_request_of_two_lines_is_no_request_for_none() -> None:
    told = enter_lsf.spoken(variables(HPCWRAP_REQUEST="debian-12\n"))
    with pytest.raises(UserError, match="its value is no environment's name"):
        lsf.read_request(told)


def test_no_ancestor_is_no_generation() -> None:
    assert enter_lsf.generations(str(os.getppid())) == 1
    assert enter_lsf.generations("") == 0
    assert enter_lsf.generations("999999999") == 0


def test_a_relative_job_file_is_an_error() -> None:
    with pytest.raises(SiteError, match="LSB_JOBFILENAME is not a path"):
        enter_lsf.job_file({"LSB_JOBFILENAME": "1795349606.1"})


def recorded(name: str) -> Dict[str, str]:
    """The environment that a real sbatchd gave PRE_EXEC, or the job after it."""
    text = (RECORDINGS / "environments" / name).read_text()
    return dict(line.split("=", 1) for line in text.splitlines())


def test_the_prolog_and_the_starter_ask_for_the_same() -> None:
    """For another message the helper would make the container anew."""
    told = enter_lsf.spoken(recorded("pre"))
    assert told == enter_lsf.spoken(recorded("job"))
    job, request = lsf.read_caller(told, ALICE)
    assert (job.id, job.nodes, job.workdir) == ("lsf-193-3", 1, "/home/alice")
    assert job.places == (("queue", "recorded"), ("application", ""))
    assert request.container == "debian-12"


def test_only_the_job_knows_its_file() -> None:
    assert enter_lsf.job_file(recorded("job")) == "/home/alice/.lsbatch/1795353372.193.3"
    with pytest.raises(SiteError):
        enter_lsf.job_file(recorded("pre"))
