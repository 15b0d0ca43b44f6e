"""The adapter's reading: ids, sizes, chunks, pbs.conf, other people's cgroups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest

from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.gpus import Gpus
from hpcwrap.job import NO_LIMITS, Limits
from hpcwrap.schedulers import pbs


@pytest.mark.parametrize("text", ["12.server", "12[3].server.example.org", "1234567.s-1"])
def test_an_id_names_a_directory(text: str) -> None:
    assert pbs.read_job_id({"PBS_JOBID": text}) == f"pbs-{text}"


@pytest.mark.parametrize(
    "text", ["", "12", "12.", "12[].server", "../12.server", "12./x", "12.a/../b", "12.s\n", "x.s"]
)
def test_what_is_no_id_names_none(text: str) -> None:
    with pytest.raises(SiteError, match="cannot read the id of PBS's job"):
        pbs.read_job_id({"PBS_JOBID": text})


def test_a_user_whom_the_node_does_not_know() -> None:
    with pytest.raises(UserError, match="cannot find the user nobody-such"):
        pbs.read_user({"PBS_EUSER": "nobody-such"})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2", 2),
        ("100b", 100),
        ("102400kb", 100 << 20),
        ("1GB", 1 << 30),
        ("2tb", 2 << 40),
        ("", 0),
        ("n1", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert pbs.parse_size(text) == size


@pytest.mark.parametrize(
    ("exec_vnode", "limits"),
    [
        ("(n1:ncpus=1)", Limits(cpus=1.0)),
        ("(n1:ncpus=2:mem=1048576kb)+(n2:ncpus=4:mem=1kb)", Limits(memory=1 << 30, cpus=2.0)),
        ("(n1:ncpus=1:mem=1mb)+(n1:ncpus=1:mem=1mb)", Limits(memory=2 << 20, cpus=2.0)),
        ("(n1[0]:ncpus=2:mem=1mb+n1[1]:ncpus=1:mem=1mb)", Limits(memory=2 << 20, cpus=3.0)),
        ("(n10:ncpus=2:mem=1mb)", NO_LIMITS),
        ("(n1:ncpus=0)", NO_LIMITS),
        ("", NO_LIMITS),
    ],
)
def test_what_a_job_has_of_a_node(exec_vnode: str, limits: Limits) -> None:
    assert pbs.make_limits(exec_vnode, "n1") == limits


def test_where_pbs_cgroups_has_a_cgroup_we_make_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pbs, "CGROUPS", (f"{tmp_path}/*/*/jobid",))
    environ = {"PBS_JOBID": "12[3].s", "PBS_NODE": "n1", "PBS_EXEC_VNODE": "(n1:ncpus=1:mem=1mb)"}
    assert pbs.read_limits(environ) == Limits(memory=1 << 20, cpus=1.0)
    (tmp_path / "memory/pbs_jobs.service/jobid/12[3].s").mkdir(parents=True)
    assert pbs.read_limits(environ) == NO_LIMITS


def test_the_nodes_of_a_job_in_order_and_once() -> None:
    hosts = pbs.read_hosts({"PBS_EXEC_HOST2": "n2:15002/0*2+n1.example.org:15002/0+n2:15002/1"})
    assert hosts == ("n2", "n1.example.org")
    assert pbs.read_hosts({}) == ()


CONF = """\
PBS_SERVER=ctl
PBS_EXEC={directory}
PBS_HOME=/var/spool/pbs
PBS_START_SERVER={server}
{more}
"""


def installation(tmp_path: Path, *, server: int = 0, more: str = "") -> dict[str, str]:
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name in ("pbsdsh", "pbs_tmrsh", "qsub", "qstat", "pbs_python"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    conf = tmp_path / "pbs.conf"
    conf.write_text(CONF.format(directory=tmp_path, server=server, more=more))
    return {"PBS_CONF_FILE": str(conf), "PBS_JOBID": "7.s", "PBS_EXEC_HOST2": "n1:15002/0"}


def test_pbs_conf(tmp_path: Path) -> None:
    environ = installation(tmp_path, server=1, more="PBS_MOM_HOME=/local/pbs")
    found = pbs.read_installation(environ)
    assert found == pbs.Installation(str(tmp_path), "/local/pbs", munge=False, server=True)
    nothing = pbs.read_installation({"PBS_CONF_FILE": f"{tmp_path}/missing"})
    assert nothing == pbs.Installation("/opt/pbs", "/var/spool/pbs")


DEVICES = "CUDA_VISIBLE_DEVICES=GPU-a1,GPU-b2\nCUDA_DEVICE_ORDER=PCI_BUS_ID"
"""What pbs_cgroups of OpenPBS 23.06.06 writes (write_job_env_file): no line feed at the end."""


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        (DEVICES, Gpus(("GPU-a1", "GPU-b2"), ("nvidia.com",))),
        ("OFFLOAD_DEVICES=0", None),
        ("", None),
    ],
)
def test_the_gpus_that_pbs_cgroups_gives(tmp_path: Path, text: str, gpus: Optional[Gpus]) -> None:
    environ = installation(tmp_path, more=f"PBS_MOM_HOME={tmp_path}")
    assert pbs.read_gpus(environ) is None
    (tmp_path / "aux").mkdir()
    (tmp_path / "aux" / "7.s.env").write_text(text)
    assert pbs.read_gpus(environ) == gpus


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("", ("pbsdsh", "pbs_tmrsh")),
        ("PBS_AUTH_METHOD=MUNGE", ("pbsdsh", "pbs_tmrsh", "qsub", "qstat")),
    ],
)
def test_commands_that_work_inside(
    more: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = installation(tmp_path, more=more)
    monkeypatch.setitem(os.environ, "PBS_CONF_FILE", environ["PBS_CONF_FILE"])
    found = pbs.commands(Settings())
    assert found
    assert (found.directory, found.names) == (f"{tmp_path}/bin", names)


def test_the_launcher_is_pbs_tmrsh_with_a_shell_on_the_other_side(tmp_path: Path) -> None:
    found = pbs.launcher(Settings(), installation(tmp_path))
    assert found
    assert found.words == (f"{tmp_path}/bin/pbs_tmrsh", "%h", "/bin/sh", "-c", "%c")
    assert found.nodes == ("n1",)
    assert dict(found.defaults)["HYDRA_HOST_FILE"] == "/var/spool/pbs/aux/7.s"
