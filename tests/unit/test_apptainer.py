"""The variables of Apptainer's images, of which no shell is asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap.image.apptainer import (
    ENVIRONMENT,
    MAX_SCRIPT,
    OF_DOCKER,
    parse_definition,
    parse_docker,
    variables_of,
)

# As apptainer 1.4.5 wrote it for an image with these variables.
SCRIPT = r"""#!/bin/sh
export PATH="/usr/bin:/opt/x"
export A="${A:-"1"}"
export B="${B:-"with space"}"
export Q="${Q:-"a\\\"b"}"
export D="${D:-"a\\$b"}"
export T="${T:-"a\\`b"}"
export S="${S:-"a\\\\b"}"
export N="${N:-"a\nb"}"
export E="${E:-""}"
export C="${C:-"{x: \\${y}}"}"
export U="${U:-"ü"}"
"""


def test_what_apptainer_writes_is_undone() -> None:
    assert parse_docker(SCRIPT) == {
        "PATH": "/usr/bin:/opt/x",
        "A": "1",
        "B": "with space",
        "Q": 'a"b',
        "D": "a$b",
        "T": "a`b",
        "S": "a\\b",
        "N": "a\nb",
        "E": "",
        "C": "{x: ${y}}",
        "U": "ü",
    }


def written(name: str, value: str) -> str:
    """A line of that script: shell.Escape, then Go's %q, as Apptainer does it."""
    for special in '\\"`$':
        value = value.replace(special, "\\" + special)
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'export {name}="${{{name}:-"{quoted}"}}"\n'


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), st.text("aü\\\"'`${}:- \n=;")
    )
)
def test_every_value_comes_back(variables: dict[str, str]) -> None:
    script = "".join(written(name, value) for name, value in variables.items())
    assert parse_docker(script) == variables


@pytest.mark.parametrize(
    "line",
    [
        'export A="$B"',
        'export A="$(id)"',
        'export A="`id`"',
        'export A="${A:-"$(id)"}"',
        'export A="${B:-"x"}"',
        'export A="a"b"',
        'export A="\\x41"',
        'export A="x\\"',
        "export A=1; id",
        ' export A="1"',
        'export 1="1"',
    ],
)
def test_what_needs_a_shell_is_left_out(line: str) -> None:
    assert parse_docker(line + '\nexport Z="1"\n') == {"Z": "1"}


def test_plain_assignments_of_a_definition() -> None:
    script = "#!/bin/sh\n# words\n\nexport A=1\nB=/x:y\nexport C='a $b'\n  export D=\"e f\"\n"
    assert parse_definition(script) == {"A": "1", "B": "/x:y", "C": "a $b", "D": "e f"}


def test_a_definition_keeps_what_needs_no_shell() -> None:
    assert parse_definition("export PATH=/x:$PATH\nexport A=1\n") == {"A": "1"}


@pytest.mark.parametrize(
    "line", ["if true; then", "export A=$(id)", "A=1; id", "source x", "A=1 id"]
)
def test_a_definition_that_does_more_is_not_read(line: str) -> None:
    assert parse_definition(f"export B=1\n{line}\n") == {}


@given(st.text(alphabet="export A=\"'$`{}:-\\\n;Bn#"))
def test_any_script_is_read(script: str) -> None:
    for variables in (parse_docker(script), parse_definition(script)):
        assert all(name.isidentifier() for name in variables)


@pytest.mark.skipif(not shutil.which("rdsquashfs"), reason="needs squashfs-tools-ng")
def test_a_script_that_fills_the_memory_is_not_read(tmp_path: Path) -> None:
    scripts = tmp_path / "tree" / ENVIRONMENT
    scripts.mkdir(parents=True)
    for lines, expected in ((1, ("A=1",)), (MAX_SCRIPT, ())):
        (scripts / OF_DOCKER).write_text('export A="1"\n' * lines)
        squashfs = str(tmp_path / str(lines))
        words = ["mksquashfs", str(tmp_path / "tree"), squashfs, "-quiet", "-no-progress"]
        subprocess.run(words, check=True)
        assert variables_of(squashfs) == expected
