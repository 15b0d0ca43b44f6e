"""The compiled program behind HTCondor's SINGULARITY: what of a job's variables Python gets.

In Python's place is a script that prints its words and its variables.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest

NATIVE = Path(__file__).parents[2] / "native"
PRINTER = '#!/bin/sh\nfor word; do echo "[$word]"; done\nenv\n'


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation with the program and the printer."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    prefix = tmp_path_factory.mktemp("prefix")
    made = prefix / "libexec" / "hpcwrap" / "hpcwrap-singularity"
    made.parent.mkdir(parents=True)
    subprocess.run(["make", "-s", "-C", NATIVE, f"BUILD={made.parent}", str(made)], check=True)
    python = prefix / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(PRINTER)
    python.chmod(0o755)
    return made


def lines_of(program: Path, variables: Dict[str, str], *words: str) -> List[str]:
    env = {"PATH": "/bin:/usr/bin", **variables}
    command = [str(program), *words]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_the_words_are_handed_on(program: Path) -> None:
    lines = lines_of(program, {}, "-s", "exec", "", "a  b")
    assert lines[:2] == ["[-I]", "[-c]"]
    assert "enter_htcondor" in lines[2]
    assert lines[3:7] == ["[-s]", "[exec]", "[]", "[a  b]"]


@pytest.mark.parametrize(
    "name", ["LD_AUDIT", "LD_X", "PYTHONPATH", "OPENSSL_CONF", "GCONV_PATH", "BASH_ENV", "ENV"]
)
def test_what_says_what_is_loaded_is_for_the_inside(program: Path, name: str) -> None:
    lines = lines_of(program, {name: "/mine"})
    assert f"{name}=/mine" not in lines
    assert f"APPTAINERENV_{name}=/mine" in lines


def test_the_value_inside_wins(program: Path) -> None:
    """The starter gives both; of the outer one nothing is left."""
    lines = lines_of(program, {"LD_PRELOAD": "outer", "APPTAINERENV_LD_PRELOAD": "inner"})
    assert [line for line in lines if "LD_PRELOAD" in line] == ["APPTAINERENV_LD_PRELOAD=inner"]


def test_others_stay(program: Path) -> None:
    others = {"LDAP": "x", "ENVIRONMENT": "y", "HOME": "/h", "APPTAINERENV_LD": "z", "EMPTY": ""}
    lines = lines_of(program, others)
    assert {f"{name}={value}" for name, value in others.items()} <= set(lines)


def test_without_its_python(program: Path, tmp_path: Path) -> None:
    alone = tmp_path / "hpcwrap-singularity"
    shutil.copy(program, alone)
    ran = subprocess.run([str(alone)], capture_output=True, text=True, check=False)
    assert ran.returncode == 125
    assert "cannot start /" in ran.stderr
