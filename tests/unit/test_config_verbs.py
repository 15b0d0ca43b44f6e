"""hpcwrap config and hpcwrap env, as people and scripts see them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Tuple

import pytest

from hpcwrap import cli, table


@pytest.fixture
def file(tmp_path: Path) -> str:
    directory = tmp_path / "environments.d"
    directory.mkdir()
    (directory / "debian-12.yaml").write_text(
        "image: debian:12\ndescription: Debian\nmounts: [/sw]\nvariables: {unset: [A]}\n"
    )
    (directory / "mine.yaml").write_text(
        "base: debian-12\nusers: [alice]\ngroups: [chem]\nvariables: {set: {B: c}}\n"
    )
    path = tmp_path / "hpcwrap.yaml"
    path.write_text(
        "mounts: [/data, /x /y none ro]\nmount_home: false\n"
        "defaults: {slurm: {partition: {gpu: mine}}}\n"
    )
    return str(path)


def break_one(file: str) -> str:
    path = Path(file).parent / "environments.d/bad.yaml"
    path.write_text("imge: x\n")
    return str(path)


Output = Tuple[int, str, str]


@pytest.fixture
def hpcwrap(file: str, capsys: pytest.CaptureFixture[str]):
    def call(*words: str) -> Output:
        code = cli.run(["--config", file, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell]


def test_config_shows_every_value_and_where_it_is_from(hpcwrap, file: str) -> None:
    code, out, _ = hpcwrap("config")
    lines = [[cell.strip() for cell in cells(line)] for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["SETTING", "VALUE", "FROM"]
    assert ["store", "/var/lib/hpcwrap", "default"] in lines
    assert ["mounts", "/data /data bind", f"{file}:1"] in lines
    assert ["mounts", "/x /y bind ro", f"{file}:1"] in lines
    assert ["mount_home", "false", f"{file}:2"] in lines
    assert ["defaults.slurm.partition.gpu", "mine", f"{file}:3"] in lines


def test_config_as_json_has_the_same_rows(hpcwrap, file: str) -> None:
    code, out, _ = hpcwrap("config", "--json")
    document = json.loads(out)
    assert (code, document["file"]) == (0, file)
    assert {"name": "mount_home", "value": False, "origin": f"{file}:2"} in document["settings"]
    assert {"name": "pull_timeout", "value": 900, "origin": "default"} in document["settings"]


def test_config_check_is_content_or_tells_every_problem(hpcwrap, file: str) -> None:
    code, out, err = hpcwrap("config", "--check")
    assert (code, out, err) == (0, f"{file}: the settings and 2 environments are well\n", "")
    broken = break_one(file)
    Path(file).write_text("defaults: {slurm: {account: {a: gone}}}\n")
    code, out, err = hpcwrap("config", "--check")
    assert (code, out) == (3, "")
    first, second = err.splitlines()
    assert first.endswith(f"{broken}:1: unknown key imge (did you mean image?)")
    assert f"{file}:1: defaults.slurm.account.a names the environment gone, which does" in second
    assert second.endswith("(add environments.d/gone.yaml or change the default)")


def test_config_check_finds_a_reference_that_no_registry_could_have(hpcwrap, file: str) -> None:
    base = Path(file).parent / "environments.d/debian-12.yaml"
    base.write_text("image: Debian:12\n")
    code, _, err = hpcwrap("config", "--check")
    assert code == 3
    assert f"{base}:1: " in err
    assert "Debian:12" in err
    assert err.count("\n") == 1, "the heir of a bad image repeats the error"


def test_config_check_finds_what_is_not_allowed_and_files_that_are_not_there(
    hpcwrap, file: str
) -> None:
    Path(file).write_text("allow_images: ['h/*']\npolicy: /gone/p\nregistries_conf: /gone/r\n")
    code, _, err = hpcwrap("config", "--check")
    assert code == 3
    assert "debian-12.yaml:1: cannot use the image docker.io/library/debian:12: this site " in err
    assert f"{file}:2: cannot read /gone/p, which policy names\n" in err
    assert f"{file}:3: cannot read /gone/r, which registries_conf names\n" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the site's passwords")
def test_config_check_finds_passwords_that_everybody_may_read(hpcwrap, file: str) -> None:
    passwords = Path(file).parent / "auth.json"
    passwords.write_text('{"auths": {}}')
    Path(file).write_text(f"auth_file: {passwords}\n")
    passwords.chmod(0o644)
    code, _, err = hpcwrap("config", "--check")
    assert (code, f"{file}:1: cannot use the passwords in {passwords}: every" in err) == (3, True)
    passwords.chmod(0o600)
    assert hpcwrap("config", "--check")[0] == 0


@pytest.mark.parametrize(
    ("libraries", "reason"),
    [
        ("[/opt/libfoo.so]", "its name tells no ABI that is known"),
        ("[/a/libmpi.so.40, /b/libmpi.so.40.30.4]", "names two libraries of Open MPI"),
    ],
)
def test_config_check_finds_mpi_libraries_of_no_use(
    hpcwrap, file: str, libraries: str, reason: str
) -> None:
    Path(file).write_text(f"mpi_libraries: {libraries}\n")
    code, _, err = hpcwrap("config", "--check")
    assert code == 3
    assert err.startswith(f"hpcwrap: {file}:1: cannot ")
    assert reason in err


def test_config_check_of_broken_settings_ends_with_3(hpcwrap, file: str) -> None:
    Path(file).write_text("stor: /x\n")
    code, _, err = hpcwrap("config", "--check")
    assert code == 3
    assert f"{file}:1: unknown key stor (did you mean store?)" in err


def test_env_list_shows_who_may_use_what(hpcwrap) -> None:
    code, out, _ = hpcwrap("env", "list")
    lines = [[cell.strip() for cell in cells(line)] for line in out.splitlines()]
    assert code == 0
    assert lines == [
        ["NAME", "IMAGE", "BASE", "FOR", "DESCRIPTION"],
        ["debian-12", "debian:12", "-", "everyone", "Debian"],
        ["mine", "debian:12", "debian-12", "alice, @chem", "Debian"],
    ]


def test_env_list_marks_the_broken_and_ends_with_3(hpcwrap, file: str) -> None:
    broken = break_one(file)
    code, out, _ = hpcwrap("env", "list")
    assert code == 3
    assert f"BROKEN: {broken}:1: unknown key imge" in out
    assert "debian-12" in out
    code, out, _ = hpcwrap("env", "list", "--json")
    assert code == 3
    documents = {document["name"]: document for document in json.loads(out)}
    assert documents["bad"]["problem"].startswith(f"{broken}:1: unknown key imge")
    assert documents["mine"]["groups"] == ["chem"]


def test_env_list_tells_a_base_without_an_image_apart(hpcwrap, file: str) -> None:
    directory = Path(file).parent / "environments.d"
    (directory / "tools.yaml").write_text("mounts: [/tools]\n")
    (directory / "other.yaml").write_text("base: tools\nimage: x\n")
    code, out, _ = hpcwrap("env", "list")
    assert code == 0
    assert "no image: only a base for others" in out


def test_env_show_says_where_each_part_is_from(hpcwrap, file: str) -> None:
    directory = Path(file).parent / "environments.d"
    mine, base = str(directory / "mine.yaml"), str(directory / "debian-12.yaml")
    code, out, _ = hpcwrap("env", "show", "mine")
    assert code == 0
    assert [[cell.strip() for cell in cells(line)] for line in out.splitlines()[1:]] == [
        ["name", "mine", mine],
        ["base", "debian-12", f"{mine}:1"],
        ["image", "debian:12", f"{base}:1"],
        ["description", "Debian", f"{base}:2"],
        ["mount", "/sw /sw bind", f"{base}:3"],
        ["variable", "unset A", f"{base}:4"],
        ["variable", "set B=c", f"{mine}:4"],
        ["users", "alice", f"{mine}:2"],
        ["groups", "chem", f"{mine}:3"],
    ]
    code, out, _ = hpcwrap("env", "show", "mine", "--json")
    document = json.loads(out)
    assert document["mounts"][0]["line"] == "/sw /sw bind"
    assert document["origins"]["image"] == f"{base}:1"


def test_env_show_of_what_is_not_or_is_broken(hpcwrap, file: str) -> None:
    code, _, err = hpcwrap("env", "show", "minne")
    assert code == 2
    assert "there is no environment 'minne' (did you mean mine?)" in err
    break_one(file)
    code, _, err = hpcwrap("env", "show", "bad")
    assert code == 3
    assert "unknown key imge" in err


def test_a_terminal_gets_a_table_that_leaves_brackets_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    table.print_table(("name", "value"), [("a[red]", "[/x]")])
    assert "a[red]" in terminal.getvalue()
    assert "[/x]" in terminal.getvalue()
