"""Job files that a real mbatchd made, through the starter that it put into them, and a helper.

None has a container here: what is looked at is that a job of any form runs once, as without the
starter.  tests/lsf/test_live.py has the containers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator

import pytest
from installation import RECORDINGS, REPOSITORY, Installation, Ran, run

from hpcwrap import paths
from hpcwrap.container import syscalls

pytestmark = pytest.mark.privileged

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
LISTEN = REPOSITORY / "tools" / "listen"
ENDS = {
    "simple": (0, ""),
    "compound": (3, "one\ntwo\n"),
    "quoted": (4, "a  b c  d $HOME 2\n"),
    "lines": (0, "one\na\nb\n"),
    "stdin": (5, "arguments: 0 single double\nhere 5\n"),
    "bash": (0, "two\n"),
    "input": (0, "given\n"),
    "host": (0, "on the host\n"),
    "evasion": (0, "evaded\n"),
}
"""Form of the job → its exit code and output, as they were on the real cluster."""


@pytest.fixture(scope="module", autouse=True)
def helper(installation: Installation) -> Iterator[None]:
    """A helper of our own, on a /run of our own."""
    import os

    home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("run", "/run", "tmpfs", 0, "mode=0755")
    code = "from hpcwrap.helper import main; main()"
    python = installation.prefix / "bin" / "python3"
    command = [sys.executable, LISTEN, paths.HELPER_SOCKET, python, "-I", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as listening:
        while not Path(paths.HELPER_SOCKET).exists():
            time.sleep(0.02)
        yield
        listening.kill()
    syscalls.setns(home, syscalls.CLONE_NEWNS)


@pytest.fixture
def environ(tmp_path_factory: pytest.TempPathFactory, installation: Installation) -> Dict[str, str]:
    return {
        "LSB_JOBID": "7",
        "LSB_JOBINDEX": "0",
        "LSB_QUEUE": "normal",
        "LSB_TRAPSIGS": "trap # 15 10 12 2 1",
        "LS_SUBCWD": "/tmp/",
        "MINE": "kept",
    }


def start(
    installation: Installation, environ: Dict[str, str], form: str, where: Path, stdin: str = ""
) -> Ran:
    """Run a job's file as sbatchd does: as the job's user."""
    text = (RECORDINGS / "jobs" / f"job.{form}").read_text()
    file = where / f"job.{form}"
    file.write_text(text.replace("/opt/hpcwrap", str(installation.prefix)))
    for path in (where, file):
        path.chmod(0o755)
        shutil.chown(path, 65534, 65534)
    variables = {**environ, "LSB_JOBFILENAME": str(file), "LSB_CHKFILENAME": str(file)}
    return run(*NOBODY, "/bin/sh", str(file), environ=variables, stdin=stdin)


@pytest.fixture
def where(installation: Installation) -> Iterator[Path]:
    """A spool directory of the job's user."""
    directory = installation.prefix / "spool"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("form", sorted(ENDS))
def test_a_job_of_any_form_runs_once(
    installation: Installation, environ: Dict[str, str], where: Path, form: str
) -> None:
    ran = start(installation, environ, form, where, "given\n")
    assert (ran.code, ran.stdout) == ENDS[form]
    assert [path.name for path in where.iterdir()] == [f"job.{form}"], "LSF's own rm was reached"


def test_without_the_helper_nothing_runs(
    installation: Installation, environ: Dict[str, str], where: Path
) -> None:
    socket = Path(paths.HELPER_SOCKET)
    away = socket.with_name("away")
    socket.rename(away)
    try:
        ran = start(installation, environ, "host", where)
    finally:
        away.rename(socket)
    assert (ran.code, ran.stdout) == (125, "")
    assert "hpcwrap: cannot reach the helper at /run/hpcwrap/helper.sock" in ran.stderr


def test_without_the_starter_nothing_runs(
    installation: Installation, environ: Dict[str, str], where: Path
) -> None:
    gone = installation._replace(prefix=Path("/no/such/place"))
    ran = start(gone, environ, "compound", where)
    assert (ran.code, ran.stdout) == (127, "")


def test_another_jobs_mark_is_not_ours(
    installation: Installation, environ: Dict[str, str], where: Path
) -> None:
    """A job submitted from inside a job has its variables."""
    ran = start(installation, {**environ, "HPCWRAP_LSF": "6.0"}, "compound", where)
    assert (ran.code, ran.stdout) == ENDS["compound"]


def test_an_unknown_container_ends_the_job_with_a_sentence(
    installation: Installation, environ: Dict[str, str], where: Path
) -> None:
    ran = start(installation, {**environ, "HPCWRAP_REQUEST": "debain-12"}, "host", where)
    assert (ran.code, ran.stdout) == (125, "")
    assert "hpcwrap: there is no environment 'debain-12'" in ran.stderr


def test_a_prolog_leaves_a_users_error_to_the_starter(
    installation: Installation, environ: Dict[str, str]
) -> None:
    """With 1 LSF would try the job again and again, with 99 nobody would tell the user why."""
    asked = {**environ, "HPCWRAP_REQUEST": "debain-12"}
    assert run(*NOBODY, str(installation.stage("prolog")), environ=asked).code == 0


def test_a_prolog_on_an_unfit_node_has_the_job_tried_again(
    installation: Installation, environ: Dict[str, str]
) -> None:
    socket = Path(paths.HELPER_SOCKET)
    away = socket.with_name("away")
    socket.rename(away)
    try:
        assert run(*NOBODY, str(installation.stage("prolog")), environ=environ).code == 1
    finally:
        away.rename(socket)


def test_a_task_tells_its_code(installation: Installation, environ: Dict[str, str]) -> None:
    task = str(installation.stage("enter", "lsf-task.sh"))
    ran = run(*NOBODY, task, "--tell", "echo one two; exit 7", environ=environ)
    assert ran == Ran(7, "one two\n", "hpcwrap-code-7 7\n")
    assert run(*NOBODY, task, "exit 7", environ=environ) == Ran(7, "", "")


def test_the_jobs_variables_are_as_they_were(
    installation: Installation, environ: Dict[str, str]
) -> None:
    """Python would add LC_CTYPE."""
    task = str(installation.stage("enter", "lsf-task.sh"))
    ran = run(*NOBODY, task, "env", environ=environ)
    told = dict(line.split("=", 1) for line in ran.stdout.splitlines())
    told = {name: value for name, value in told.items() if name not in ("PWD", "_", "SHLVL")}
    assert told == {"PATH": "/usr/bin:/bin", **environ}
