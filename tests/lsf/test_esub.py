"""The filter on what a real bsub of volclava wrote, through the same stage file."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest
from installation import RECORDINGS, Installation, Ran, run, site

PARAMETERS = RECORDINGS / "parameters"
ABORTED = 97


@pytest.fixture
def environ(tmp_path: Path) -> Dict[str, str]:
    variables = site(tmp_path / "etc")
    return {**variables, "LSB_SUB_MODIFY_ENVFILE": str(tmp_path / "delta")}


def submit(installation: Installation, environ: Dict[str, str], text: str) -> Ran:
    """Run the filter as bsub does it."""
    file = Path(environ["LSB_SUB_MODIFY_ENVFILE"]).with_name("parameters")
    file.write_text(text)
    argv = str(installation.stage("submit"))
    return run(argv, environ={**environ, "LSB_SUB_PARM_FILE": str(file)})


def passed_on(environ: Dict[str, str]) -> str:
    delta = Path(environ["LSB_SUB_MODIFY_ENVFILE"])
    return delta.read_text() if delta.exists() else ""


def recorded(name: str) -> str:
    return (PARAMETERS / name).read_text()


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("plain", "debian-12"),
        ("options", "busybox-1"),
        ("argument", "debian-12"),
        ("command", "debian-12"),
        ("hostile", "debian-12"),
    ],
)
def test_what_was_asked_for_goes_along(
    installation: Installation, environ: Dict[str, str], name: str, container: str
) -> None:
    ran = submit(installation, environ, recorded(name))
    assert (ran.code, ran.stderr) == (0, "")
    assert passed_on(environ) == f'HPCWRAP_REQUEST="{container}"\n'


@pytest.mark.parametrize("name", ["without", "stdin", "modified-otherwise"])
def test_who_asks_for_nothing_is_left_alone(
    installation: Installation, environ: Dict[str, str], name: str
) -> None:
    assert submit(installation, environ, recorded(name)) == Ran(0, "", "")
    assert passed_on(environ) == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "unknown",
            (
                "cannot use -a debain-12: there is no environment and no esub of that name "
                "(did you mean debian-12?)"
            ),
        ),
        ("several", "cannot use two containers in one job: debian-12 and busybox-1"),
        (
            "login-shell",
            (
                "cannot use -L with -a debian-12: a job with a login shell loses its environment "
                "(leave -L out)"
            ),
        ),
        (
            "modified",
            (
                "cannot change the container of a job to debian-12: "
                "bmod cannot change its environment (submit it again)"
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused(
    installation: Installation, environ: Dict[str, str], name: str, sentence: str
) -> None:
    ran = submit(installation, environ, recorded(name))
    assert (ran.code, ran.stderr) == (ABORTED, f"hpcwrap: {sentence}\n")
    assert passed_on(environ) == ""


def test_an_environment_of_others_is_refused(
    installation: Installation, environ: Dict[str, str]
) -> None:
    ran = submit(installation, environ, 'LSB_SUB_ADDITIONAL="others"\n')
    assert ran.code == ABORTED
    assert "may not use the environment others" in ran.stderr


def test_a_queue_without_a_starter_is_refused(
    installation: Installation, environ: Dict[str, str]
) -> None:
    text = 'LSB_SUB_QUEUE="bare"\nLSB_SUB_ADDITIONAL="debian-12"\n'
    ran = submit(installation, environ, text)
    assert ran.code == ABORTED
    assert "the queue bare: lsb.queues has no JOB_STARTER for it" in ran.stderr


def test_methods_of_others_are_theirs(
    installation: Installation, environ: Dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "etc" / "esub.fluent").write_text("")
    assert submit(installation, environ, 'LSB_SUB_ADDITIONAL="fluent"\n').code == 0
    assert passed_on(environ) == ""
    submit(installation, environ, 'LSB_SUB_ADDITIONAL="fluent debian-12"\n')
    assert passed_on(environ) == 'HPCWRAP_REQUEST="debian-12"\n'


def test_a_variable_is_checked_too(installation: Installation, environ: Dict[str, str]) -> None:
    asked = {**environ, "HPCWRAP_REQUEST": "debain-12"}
    ran = submit(installation, asked, "")
    assert ran.code == ABORTED
    assert "there is no environment 'debain-12'" in ran.stderr


@pytest.mark.parametrize("word", ["none", "debian-12@sha256:" + 64 * "0"])
def test_other_words_that_name_a_container(
    installation: Installation, environ: Dict[str, str], word: str
) -> None:
    assert submit(installation, environ, f'LSB_SUB_ADDITIONAL="{word}"\n').code == 0
    assert passed_on(environ) == f'HPCWRAP_REQUEST="{word}"\n'


def test_without_python_nothing_is_submitted(
    installation: Installation, environ: Dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "share" / "hpcwrap" / "submit" / "lsf.sh"
    broken.parent.mkdir(parents=True)
    broken.write_text(installation.stage("submit").read_text())
    broken.chmod(0o755)
    assert run(str(broken), environ=environ).code == ABORTED


def test_settings_that_cannot_be_read_refuse(
    installation: Installation, environ: Dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "etc" / "hpcwrap.yaml").write_text("nonsense: 1\n")
    ran = submit(installation, environ, recorded("plain"))
    assert ran.code == ABORTED
    assert "hpcwrap.yaml:1" in ran.stderr
