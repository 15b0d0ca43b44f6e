"""The SPANK plugin as a file; what it does is tested on a real Slurm, in tests/slurm."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

from hpcwrap.verbs.setup_slurm import BUILT_FOR

NATIVE = pathlib.Path(__file__).parents[2] / "native"
HEADER = pathlib.Path("/usr/include/slurm/slurm_version.h")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if not HEADER.exists() or not shutil.which("make"):
        pytest.skip("Slurm's headers are not installed (Debian: libslurm-dev)")
    build = tmp_path_factory.mktemp("native")
    subprocess.run(["make", "-s", "-C", NATIVE, f"BUILD={build}", "plugin"], check=True)
    return build / "spank_hpcwrap.so"


def test_nothing_but_what_slurm_looks_up_is_exported(plugin: pathlib.Path) -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", plugin], check=True, capture_output=True, text=True
    )
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    hooks = {"init", "init_post_opt", "user_init", "task_post_fork"}
    hooks |= {"task_init_privileged", "task_init"}
    assert names == {
        "plugin_name",
        "plugin_type",
        "plugin_version",
        "spank_plugin_version",
        *(f"slurm_spank_{hook}" for hook in hooks),
    }


def test_setup_can_tell_for_which_slurm_it_was_built(plugin: pathlib.Path) -> None:
    found = BUILT_FOR.search(plugin.read_bytes())
    assert found
    assert f"0x{found.group(1).decode()}" in HEADER.read_text()


def test_compilers_analysis_finds_nothing(tmp_path: pathlib.Path) -> None:
    if not HEADER.exists() or not shutil.which("gcc"):
        pytest.skip("gcc and Slurm's headers are not both installed")
    strict = ["gcc", "-fanalyzer", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-c"]
    for name in ("enter.c", "entry.c", "hpcwrap-enter.c", "stage.c", "spank_hpcwrap.c"):
        output = str(tmp_path / "object.o")
        subprocess.run([*strict, str(NATIVE / name), "-o", output], check=True)
