"""Launching on other nodes: Slurm's host lists, and the file that native/hpcwrap-launch reads."""

import os
from pathlib import Path
from typing import Optional

import pytest

from hpcwrap import machine, paths
from hpcwrap.config import Settings
from hpcwrap.container.addition import Addition
from hpcwrap.container.launch import LauncherFile
from hpcwrap.environment import Environment
from hpcwrap.job import User
from hpcwrap.schedulers import Launcher, load
from hpcwrap.schedulers.slurm_hosts import expand

ALICE = User("alice", 2001, 2001, (2001,), "/home/alice")
PLAIN = Environment("debian-12", "debian:12", "", (), (), None, (), (), "")


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,login-2", ["n1", "login-2"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("n[008-011]", ["n008", "n009", "n010", "n011"]),
        ("r[0-1]n[1-2]-ib,x", ["r0n1-ib", "r0n2-ib", "r1n1-ib", "r1n2-ib", "x"]),
        ("n[1-x]", []),
        ("n[1-999999999]", []),
        ("n[1-60000]m[1-60000]", []),
    ],
)
def test_host_lists_are_written_out(expression: str, names: "list[str]") -> None:
    assert list(expand(expression)) == names


def test_the_file_holds_pairs() -> None:
    file = LauncherFile(("/usr/bin/srun", "%c"), ("n1", "n2"), ("SLURM_EXACT",))
    assert file.content().split(b"\0") == [
        *(b"unset", b"SLURM_EXACT", b"word", b"/usr/bin/srun", b"word", b"%c"),
        *(b"node", b"n1", b"node", b"n2", b""),
    ]


def test_slurm_launches_by_srun_where_it_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bin")
    settings = Settings()._replace(slurm_commands=str(directory))
    environ = {"SLURM_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}
    assert load("slurm").launcher(settings, environ) is None
    (directory / "srun").write_text("")
    (directory / "srun").chmod(0o755)
    launcher = load("slurm").launcher(settings, environ)
    assert launcher is not None
    assert launcher.words[:2] == (str(directory / "srun"), "--jobid=7")
    assert "--overlap" in launcher.words
    assert launcher.nodes == ("n1", "n2")
    assert not launcher.hydra


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("TaskPlugin=task/affinity,task/cgroup\n", True),
        ("ClusterName=x\n", False),
        ("taskplugin = task/none\n", False),
        ("ClusterName=x\ninclude more.conf\n", True),
        (None, True),
    ],
)
def test_slurm_is_asked_for_all_cpus_where_it_binds(
    tmp_path: Path, text: Optional[str], bound: bool
) -> None:
    """Where it does not, srun says so whenever it is asked."""
    (tmp_path / "srun").touch(mode=0o755)
    if text is not None:
        (tmp_path / "slurm.conf").write_text(text)
    settings = Settings(slurm_commands=str(tmp_path))
    launcher = load("slurm").launcher(settings, {"SLURM_CONF": f"{tmp_path}/slurm.conf"})
    assert launcher is not None
    assert ("--cpu-bind=none" in launcher.words) == bound


def test_hydra_uses_it_where_it_knows_no_better() -> None:
    def names(launcher: Launcher) -> "set[str]":
        found = machine.launch_addition(launcher, ALICE).variables
        assert all(variable.action == "default" for variable in found[:-1])
        return {variable.name for variable in found}

    both = {"OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent", "PATH"}
    assert names(Launcher(("/bin/x", "%h", "%c"), hydra=False)) == both
    assert "HYDRA_LAUNCHER_EXEC" in names(Launcher(("/bin/x", "%h", "%c")))


def test_keys_are_for_the_user_alone() -> None:
    added = machine.launch_addition(Launcher(("/bin/x", "%c")), ALICE)
    keys = [each.describe() for each in added.operations if "/.hpcwrap/ssh" in each.describe()]
    assert len(keys) == 1
    assert "uid=2001,gid=2001,mode=0700" in keys[0]


def test_without_a_launcher_nothing_is_added() -> None:
    assert load("local").launcher(Settings(), {}) is None
    assert machine.launch_addition(None, ALICE) == Addition()
    assert machine.additions(PLAIN, Settings())[-1] == Addition()


def test_what_goes_inside_is_shipped() -> None:
    for program in ("hpcwrap-sshd", "hpcwrap-mpi"):
        assert os.access(paths.inside_programs(program)[1], os.X_OK)
