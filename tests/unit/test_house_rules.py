"""The rules that keep the rooms apart (CONTRIBUTING.md), held by reading the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "hpcwrap"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {"schedulers", "image", "container"}
STAGES = {"submit", "supply", "machine", "prolog", "enter", "epilog", "sweep", "helper"}
BASE = {"errors", "log", "__init__"}
PROGRAMS = {"hooks"}  # a scheduler's own, behind its files in the stage folders
EDGE = {"cli", "hook", "verbs", "__main__"}

# The prolog of a warm job and the epilog have a budget of 40 ms; each of these costs 3 to 30 ms.
SLOW = {
    *("argparse", "dataclasses", "inspect", "jinja2", "logging", "pathlib", "rich", "subprocess"),
    *("tempfile", "urllib", "yaml", "psutil", "threading"),
}


def name_of(module: Path) -> str:
    return ".".join(module.relative_to(REPOSITORY).with_suffix("").parts)


def tier(part: str) -> int:
    if part in BASE:
        return 0
    if part in ROOMS:
        return 2
    if part in STAGES:
        return 3
    if part in PROGRAMS:
        return 4
    return 5 if part in EDGE else 1


def imports(module: Path) -> "set[str]":
    """Every module of any package that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_down_and_rooms_stay_apart(module: Path) -> None:
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    for imported in imports(module):
        words = imported.split(".")
        if words[0] != "hpcwrap" or len(words) < 2 or not is_module(words[1]):
            continue
        other = words[1]
        assert tier(other) <= tier(own), f"{module} imports {imported}, which is above it"
        if own in ROOMS and other in ROOMS:
            assert own == other, f"{module} imports {imported}: rooms never import each other"


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


@pytest.mark.parametrize(
    ("danger", "rooms"),
    [
        ("ctypes", ("container/syscalls.py", "schedulers/pbs_ifl.py")),
        ("subprocess", ("run.py",)),
    ],
)
def test_each_danger_has_its_room(danger: str, rooms: "tuple[str, ...]") -> None:
    """ctypes has two: the kernel's calls, and PBS's library."""
    users = [module for module in MODULES if danger in imports(module)]
    assert users == [PACKAGE / room for room in rooms]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_modules_are_small(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 500


QUICK = {
    "prolog": ("hpcwrap.prolog", "hpcwrap.schedulers.slurm"),
    "epilog": ("hpcwrap.epilog", "hpcwrap.schedulers.slurm"),
    "helper": ("hpcwrap.helper",),
    **{
        module.stem: (f"hpcwrap.hooks.{module.stem}",)
        for module in sorted((PACKAGE / "hooks").glob("*_*.py"))
        # esub reads the settings as its user, who may not write the snapshot of them.
        if module.stem not in {"__init__", "submit_lsf"}
    },
}
"""What is started for each job or submission: every one of them must import little."""


@pytest.mark.parametrize("modules", QUICK.values(), ids=QUICK)
def test_what_is_started_for_each_job_imports_little(modules: "tuple[str, ...]") -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); before = set(sys.modules);"
        f"import {', '.join(modules)}; print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(modules) <= set(loaded)
    assert SLOW.isdisjoint(loaded)


def test_no_two_modules_of_the_tests_have_one_name() -> None:
    """Pytest imports each by its file's name alone, and then collects none of them."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("*.py")]
    several = {name for name in names if names.count(name) > 1}
    assert several <= {"conftest.py", "__init__.py"}
