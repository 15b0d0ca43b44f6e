"""`hpcwrap setup SCHEDULER`: one shape for all, and sentences for what is not there."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from hpcwrap import cli
from hpcwrap.errors import SiteError
from hpcwrap.verbs import setup, setup_gridengine, setup_host
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


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("gridengine", "cannot find Grid Engine's qconf on this host (install it, or have PATH"),
        ("htcondor", "cannot find the program condor_config_val (install HTCondor"),
        ("pbs", "cannot find PBS on this host: PBS_EXEC of /etc/pbs.conf is no directory"),
        ("lsf", "cannot find LSF's programs: LSF_SERVERDIR of /none/lsf.conf is not set"),
    ],
)
def test_a_scheduler_that_is_not_installed_is_told_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheduler: str, told: str
) -> None:
    monkeypatch.setattr(setup_host, "need_root", lambda: None)
    monkeypatch.setattr(setup_host, "prepare", lambda _file: pytest.fail("something was done"))
    monkeypatch.setattr("hpcwrap.run.PATH", "/none")
    (tmp_path / "pbs.conf").write_text("PBS_EXEC=/none\n")
    monkeypatch.setenv("PATH", "/none")
    monkeypatch.setenv("LSF_ENVDIR", "/none")
    monkeypatch.setenv("PBS_CONF_FILE", str(tmp_path / "pbs.conf"))
    monkeypatch.delenv("LSF_SERVERDIR", raising=False)
    with pytest.raises(SiteError) as caught:
        list(setup.load(scheduler).install(None))
    assert told in caught.value.sentence()


def test_the_table_is_looked_for_where_the_cell_has_its_master(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All hosts have the program of sge_qmaster, where they share $SGE_ROOT."""
    common = tmp_path / "default" / "common"
    common.mkdir(parents=True)
    monkeypatch.setenv("SGE_ROOT", str(tmp_path))
    monkeypatch.delenv("SGE_CELL", raising=False)
    assert not setup_gridengine.is_master()
    (common / "act_qmaster").write_text(f"{os.uname().nodename.partition('.')[0]}.example\n")
    assert setup_gridengine.is_master()
    (common / "act_qmaster").write_text("elsewhere\n")
    assert not setup_gridengine.is_master()
