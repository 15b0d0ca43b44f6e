"""`hpcwrap setup SCHEDULER`: one shape for all, and sentences for what is not there."""

from __future__ import annotations

import inspect

import pytest

from hpcwrap import cli
from hpcwrap.verbs import setup
from hpcwrap.verbs.setup import SCHEDULERS, Setup

THERE = [name for name in SCHEDULERS if setup.is_there(name)]
FUNCTIONS = {name: member for name, member in vars(Setup).items() if inspect.isfunction(member)}


@pytest.mark.parametrize("scheduler", THERE)
def test_every_module_has_the_functions_of_the_protocol(scheduler: str) -> None:
    module = setup.load(scheduler)
    assert isinstance(module.FILES, tuple)
    assert module.AFTERWARDS
    for name in ("install", "where", "lines", "write_table", "check"):
        wanted = list(inspect.signature(FUNCTIONS[name]).parameters)[1:]
        found = inspect.signature(getattr(module, name)).parameters
        # One that a module does not need has a line before its name.
        assert [parameter.lstrip("_") for parameter in found] == wanted


def test_a_scheduler_whose_module_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "module_of", lambda name: f"hpcwrap.verbs.setup_{name[:5]}")
    assert cli.run(["setup", "htcondor"]) == 3
    told = capsys.readouterr().err
    assert "cannot set up htcondor: this hpcwrap does not speak it (it speaks slurm" in told


def test_a_file_that_the_scheduler_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["setup", "slurm", "--lines", "slurm.con"]) == 2
    told = capsys.readouterr().err
    assert "cannot print lines for slurm.con (slurm has slurm.conf, plugstack.conf" in told
