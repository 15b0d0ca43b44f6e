"""What slurmd says in the prolog's environment, read into our words."""

from __future__ import annotations

import os
import pathlib
import pwd
import re
from typing import Dict, Optional

import pytest

from hpcwrap.config import Settings
from hpcwrap.environment import is_name
from hpcwrap.errors import SiteError
from hpcwrap.job import Job
from hpcwrap.request import Request, is_image
from hpcwrap.schedulers import default_container, load, slurm, slurm_gpus

ME = pwd.getpwuid(os.getuid())
ENVIRON = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_UID": str(ME.pw_uid),
    "SLURM_JOB_GID": str(ME.pw_gid),
    "SLURM_JOB_USER": ME.pw_name,
    "SLURM_JOB_WORK_DIR": "/work dir/of me",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_ACCOUNT": "physics",
    "SLURMD_NODENAME": "n1",
    "SPANK_HPCWRAP_CONTAINER": "debian-12",
}


def environ(**changes: str) -> Dict[str, str]:
    return {**ENVIRON, **changes}


def test_job_and_request() -> None:
    job, request = load("slurm").read_prolog(ENVIRON)
    assert job.user.name == ME.pw_name
    places = (("partition", "gpu"), ("account", "physics"))
    assert job == Job("4711", "slurm", job.user, "/work dir/of me", "n1", places)
    assert request == Request("debian-12", "--container")


def test_only_what_every_release_gives_is_needed() -> None:
    names = ("SLURM_JOB_ID", "SLURM_JOB_UID")
    job, request = slurm.read_prolog({name: ENVIRON[name] for name in names})
    assert (job.node, job.workdir) == (os.uname().nodename, "")
    assert request.container is None


def test_a_steps_own_container_is_its_slurmstepds() -> None:
    job, request = slurm.read_prolog(environ(HPCWRAP_STEP="3", HPCWRAP_STEP_OWNER="77"))
    assert (job.id, job.owners, request.container) == ("4711.3", (77,), "debian-12")
    assert slurm.read_prolog(environ(HPCWRAP_STEP=""))[0].owners == ()
    assert slurm.account(environ(HPCWRAP_STEP="3", SLURM_NODELIST="n1"), "debian-12@x") is None
    with pytest.raises(SiteError, match="HPCWRAP_STEP"):
        slurm.read_job_id(environ(HPCWRAP_STEP="../1"))


def test_gpus_of_a_steps_own_container_are_those_that_the_jobs_prolog_noted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_gpus.note, "__defaults__", (str(tmp_path / "gpus"),))
    monkeypatch.setattr(slurm_gpus.noted, "__defaults__", (str(tmp_path / "gpus"),))
    step = environ(HPCWRAP_STEP="3", CUDA_VISIBLE_DEVICES="0,1,2,3", SLURM_JOB_GPUS="0,1,2,3")
    slurm.note(environ())
    slurm.note(step)
    assert slurm.read_gpus(step) is None
    slurm.note(environ(SLURM_JOB_GPUS="2", CUDA_VISIBLE_DEVICES="2"))
    found = slurm.read_gpus(step)
    assert found is not None
    assert (found.names, found.vendors) == (("2",), ("nvidia.com",))
    (tmp_path / "gpus" / "4711").write_text("{")
    assert slurm.read_gpus(step) is None
    slurm.note(environ())
    assert list((tmp_path / "gpus").iterdir()) == []


@pytest.mark.parametrize(("text", "nodes"), [("8", 8), ("", 1), ("x", 1), ("-2", 1)])
def test_nodes_of_the_job(text: str, nodes: int) -> None:
    assert slurm.read_prolog(environ(SLURM_JOB_NUM_NODES=text))[0].nodes == nodes
    assert slurm.read_prolog(ENVIRON)[0].nodes == 1


def test_group_is_the_jobs() -> None:
    assert slurm.read_user(environ(SLURM_JOB_GID="12345")).gid == 12345


@pytest.mark.parametrize("text", ["", "x", "1 2", "../../etc", "-1", "1\n", "٣", "9" * 11])
@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_GID"])
def test_numbers_are_numbers(name: str, text: str) -> None:
    with pytest.raises(SiteError, match=f"cannot read {name}"):
        slurm.read_prolog(environ(**{name: text}))


def test_a_user_whom_the_node_does_not_know_is_who_slurm_says() -> None:
    user = slurm.read_user(
        environ(SLURM_JOB_UID="3999999999", SLURM_JOB_GID="77", SLURM_JOB_USER="eve")
    )
    assert (user.name, user.uid, user.gid, user.groups, user.home) == (
        *("eve", 3999999999, 77, (77,)),
        "",
    )


@pytest.mark.parametrize(
    ("comment", "name"),
    [
        ("", None),
        ("run 7", None),
        ("hpcwrap=debian-12", "debian-12"),
        ("run 7 hpcwrap=debian-12", "debian-12"),
        ("hpcwrap=a hpcwrap=b", "b"),
        ("hpcwrap=a\nhpcwrap=b\t", "b"),
        ("hpcwrap=none", "none"),
        ("myhpcwrap=a", None),
        ("hpcwrap= a", None),
        ("hpcwrap=", None),
        ("hpcwrap=a x\u00a0hpcwrap=b", "a"),
        ("x\u2003hpcwrap=b", None),
        ("hpcwrap=a x\x1fhpcwrap=none", "a"),
    ],
)
def test_word_of_the_comment(comment: str, name: str) -> None:
    assert slurm.comment_request(comment) == name
    without = environ(SLURM_JOB_COMMENT=comment)
    del without["SPANK_HPCWRAP_CONTAINER"]
    assert slurm.read_request(without).container == name


DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("asked", "comment", "expected"),
    [
        ("debian-12", f"hpcwrap=debian-12@{DIGEST}", Request("debian-12", "--container", DIGEST)),
        (f"debian-12@{DIGEST}", "", Request("debian-12", "--container", DIGEST)),
        ("debian-12", f"hpcwrap=cuda-12@{DIGEST}", Request("debian-12", "--container")),
        ("debian-12", "hpcwrap=debian-12@sha256:0", Request("debian-12", "--container")),
        (None, f"x hpcwrap=a@{DIGEST}", Request("a", "the job's comment", DIGEST)),
        (f"registry/a@{DIGEST}", "", Request(f"registry/a@{DIGEST}", "--container")),
    ],
)
def test_the_digest_comes_with_the_name(
    asked: Optional[str], comment: str, expected: Request
) -> None:
    told = environ(SLURM_JOB_COMMENT=comment, SPANK_HPCWRAP_CONTAINER=asked or "")
    if asked is None:
        del told["SPANK_HPCWRAP_CONTAINER"]
    assert slurm.read_request(told) == expected


@pytest.mark.parametrize(
    "text", ["docker://ghcr.io/a/b:1", "/home/u/x.sif", "oci:/a/b:name", f"debian:12@{DIGEST}"]
)
def test_an_image_comes_through_as_it_is(text: str) -> None:
    request = slurm.read_request(environ(SPANK_HPCWRAP_CONTAINER=text))
    assert request == Request(text, "--container")
    assert is_image(text)


def test_control_environment_counts_before_the_comment() -> None:
    assert slurm.read_request(environ(SLURM_JOB_COMMENT="hpcwrap=b")).container == "debian-12"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a b", "", "x\n", "/", "é", "/é", "$(id)", "'", '"', "a" * 10_000]
)
def test_what_is_no_name_becomes_harmless_and_stays_no_name(name: str) -> None:
    container = slurm.read_request(environ(SPANK_HPCWRAP_CONTAINER=name)).container
    assert container
    assert len(container) <= 512
    assert re.fullmatch(r"[A-Za-z0-9?./_-]+", container)
    assert not is_name(container)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("TaskProlog={0}", True),
        ("taskprolog = {0} # per rank", True),
        ("TaskProlog={0}.gone", False),
        ("TaskProlog=site/task.sh", False),
        ("#TaskProlog={0}", False),
        ("TaskEpilog={0}", False),
    ],
)
def test_the_sites_task_prolog_is_the_hosts_to_run(
    tmp_path: pathlib.Path, line: str, found: bool
) -> None:
    script, conf = tmp_path / "task.sh", tmp_path / "slurm.conf"
    script.write_text("#!/bin/bash\n")
    conf.write_text(f"ClusterName=x\n{line.format(script)}\n")
    assert slurm.task_prolog(str(conf)) == ((str(script),) if found else ())


def test_own_mounts_may_be_absent_on_a_node() -> None:
    settings = Settings(slurm_spool_directory="/var/spool/slurmd.%n")
    mounts = slurm.own_mounts(settings)
    assert [mount.target for mount in mounts][:1] == ["/run/munge"]
    assert all(mount.source == mount.target and "nofail" in mount.options for mount in mounts)
    host = os.uname().nodename.split(".")[0]
    assert mounts[1].source in (f"/var/spool/slurmd.{host}", "/var/spool/slurmd.n1")


def test_spool_directory_of_several_daemons_on_a_host() -> None:
    assert slurm.spool_directory("/s/%n", {"SLURMD_NODENAME": "n7"}) == "/s/n7"


@pytest.mark.parametrize(
    ("partition", "account", "expected"),
    [
        ("gpu", "other", Request("cuda-12", "the default of the partition gpu")),
        ("gpu", "physics", Request("cuda-12", "the default of the partition gpu")),
        ("main", "physics", Request("debian-12", "the default of the account physics")),
        ("plain", "physics", None),
        ("main", "other", None),
        ("", "", None),
    ],
)
def test_defaults(partition: str, account: str, expected: Request) -> None:
    defaults = {
        "partition": {"gpu": "cuda-12", "plain": "none"},
        "account": {"physics": "debian-12"},
    }
    job = slurm.read_prolog(environ(SLURM_JOB_PARTITION=partition, SLURM_JOB_ACCOUNT=account))[0]
    assert default_container(Settings(defaults={"slurm": defaults}), job) == expected


def test_unknown_scheduler() -> None:
    with pytest.raises(SiteError, match="cannot find the scheduler nqs"):
        load("nqs")
