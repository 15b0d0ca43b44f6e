"""The compiled starter of Grid Engine: which words hpcwrap-enter gets for which kind of job.

In hpcwrap-enter's place, beside it, is a script that prints its words.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest

NATIVE = Path(__file__).parents[2] / "native"
PRINTER = '#!/bin/sh\nfor word; do echo "[$word]"; done\nenv | grep -c -e STARTER -e REQUEST\n'
BATCH = {"SGE_STARTER_SHELL_PATH": "/bin/bash", "SGE_STARTER_USE_LOGIN_SHELL": "true"}
QRSH = {"SGE_STARTER_SHELL_PATH": "", "SGE_STARTER_SHELL_START_MODE": "unix_behavior"}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the starter, the printer, and a spool with scripts."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    made = tmp_path_factory.mktemp("starter")
    subprocess.run(["make", "-s", "-C", NATIVE, f"BUILD={made}", "program"], check=True)
    (made / "hpcwrap-enter").unlink()
    (made / "hpcwrap-enter").write_text(PRINTER)
    (made / "hpcwrap-enter").chmod(0o755)
    for name, text in (("7", "#!/bin/sh\n"), ("8", "echo no interpreter\n")):
        (made / "job_scripts").mkdir(exist_ok=True)
        (made / "job_scripts" / name).write_text(text)
    return made


def start(place: Path, variables: Dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/bin:/usr/bin", "SGE_TASK_ID": "undefined", **variables}
    program = str(place / "hpcwrap-starter")
    return subprocess.run([program, *words], env=env, capture_output=True, text=True, check=False)


def words_of(place: Path, variables: Dict[str, str], *words: str) -> List[str]:
    """What hpcwrap-enter is to start; nothing of Grid Engine's words to us is in its variables."""
    ran = start(place, {"HPCWRAP_REQUEST": "debian-12", **variables}, *words)
    lines = ran.stdout.splitlines()
    assert lines[1] == "[--]", ran.stderr
    assert lines[-1] == "0"
    return [line[1:-1] for line in lines[2:-1]]


@pytest.mark.parametrize(
    ("mode", "number", "command"),
    [
        ("unix_behavior", "7", ["{}", "a b"]),
        ("unix_behavior", "8", ["/bin/sh", "{}", "a b"]),
        ("posix_compliant", "7", ["/bin/bash", "-l", "{}", "a b"]),
    ],
)
def test_a_script(place: Path, mode: str, number: str, command: List[str]) -> None:
    script = str(place / "job_scripts" / number)
    variables = {**BATCH, "SGE_STARTER_SHELL_START_MODE": mode, "JOB_ID": number}
    assert words_of(place, variables, script, "a b") == [word.format(script) for word in command]


def test_a_shell_without_the_option(place: Path) -> None:
    """`-l` means something else to csh when it is not alone."""
    variables = {"SGE_STARTER_SHELL_PATH": "/bin/csh", "SGE_STARTER_USE_LOGIN_SHELL": "true"}
    script = str(place / "job_scripts" / "7")
    more = {"SGE_STARTER_SHELL_START_MODE": "posix_compliant", "JOB_ID": "7"}
    assert words_of(place, {**variables, **more}, script) == ["/bin/csh", script]


def test_a_script_from_stdin(place: Path) -> None:
    variables = {**BATCH, "SGE_STARTER_SHELL_START_MODE": "script_from_stdin", "JOB_ID": "7"}
    assert words_of(place, variables, "-s", "x") == ["/bin/bash", "-l", "-s", "x"]


@pytest.mark.parametrize("mode", ["unix_behavior", "posix_compliant"])
def test_a_command_of_the_users(place: Path, mode: str) -> None:
    """Also one that looks like the script of another job."""
    variables = {**BATCH, "SGE_STARTER_SHELL_START_MODE": mode, "JOB_ID": "7"}
    for command in ("hostname", str(place / "job_scripts" / "8")):
        assert words_of(place, variables, command, "a  b", "") == [command, "a  b", ""]


def test_qrsh_has_a_shell_take_the_words_apart(place: Path) -> None:
    assert words_of(place, {**QRSH, "JOB_ID": "7"}, "echo", "a;", "exit 3") == [
        *("/bin/sh", "-c"),
        "echo a; exit 3",
    ]


@pytest.mark.parametrize(
    ("variables", "directory"),
    [({"SGE_TASK_ID": "undefined"}, "7-0"), ({"SGE_TASK_ID": "12"}, "7-12")],
)
def test_the_directory_of_a_job(place: Path, variables: Dict[str, str], directory: str) -> None:
    ran = start(place, {**QRSH, "JOB_ID": "7", **variables}, "true")
    assert ran.stdout.splitlines()[0] == f"[/run/hpcwrap/jobs/gridengine-{directory}]"


@pytest.mark.parametrize("number", ["", "../../x", "7/..", "12345678901", "-1", "7 "])
def test_only_numbers_name_a_directory(place: Path, number: str) -> None:
    for name in ("JOB_ID", "SGE_TASK_ID"):
        if name == "SGE_TASK_ID" and not number:
            continue
        ran = start(place, {**QRSH, "JOB_ID": "7", name: number}, "true")
        assert (ran.returncode, ran.stdout) == (125, "")
        assert f"hpcwrap-starter: cannot read the job's {name}" in ran.stderr


def test_without_a_command(place: Path) -> None:
    assert start(place, {**QRSH, "JOB_ID": "7"}).returncode == 125
