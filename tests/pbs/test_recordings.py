"""The hooks on what a real OpenPBS 23.06 sent them: so they run where there is no PBS, too."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from replay import Event, load, replay

from hpcwrap.config import Config, Settings
from hpcwrap.environment import Environment
from hpcwrap.schedulers import pbs, pbs_hooks

DIGEST = "sha256:" + 64 * "d"
OTHER = "sha256:" + 64 * "0"
RUN = "from hpcwrap.hook import main; main"
TOLD = "import json, os, sys; os.environ.update(json.load(sys.stdin)); "
HERE = pwd.getpwuid(os.getuid()).pw_name


def environment(name: str, *, users: tuple[str, ...] = ()) -> Environment:
    return Environment(name, f"registry/{name}", "", (), (), None, users, (), "")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """What `hpcwrap setup pbs` gives the submit hook."""
    known = {name: environment(name) for name in ("debian-12", "busybox-1")}
    known["bobs"] = environment("bobs", users=("bob",))
    config = Config("hpcwrap.yaml", Settings(), {}, known, {}, {}, {})
    path = tmp_path / "table.json"
    path.write_text(pbs_hooks.table(config, {"debian-12": (DIGEST,)}, now=0.0))
    return path


# ---- submit ----


def submit(name: str, table: Path, container: str | None = None) -> Event:
    recording = load(name)
    if container is not None:
        recording["job"].setdefault("Resource_List", {})["container"] = container
    return replay(recording, "submit", table)


@pytest.mark.parametrize(
    ("recording", "wanted"),
    [
        ("queuejob-option", f"debian-12@{DIGEST}"),
        ("queuejob-variable", "busybox-1"),
        ("queuejob-queue", None),
        ("modifyjob-option", f"debian-12@{DIGEST}"),
    ],
)
def test_what_a_job_is_to_have(recording: str, wanted: str | None, table: Path) -> None:
    event = submit(recording, table)
    assert event.rejected is None
    assert event.job.Resource_List["container"] == wanted


def test_the_option_counts_before_the_variable(table: Path) -> None:
    event = submit("queuejob-variable", table, "debian-12")
    assert event.job.Resource_List["container"] == f"debian-12@{DIGEST}"


@pytest.mark.parametrize("recording", ["queuejob-option", "modifyjob-option"])
@pytest.mark.parametrize(
    ("container", "sentence"),
    [
        ("debain-12", "there is no environment 'debain-12' (did you mean debian-12?)"),
        ("x", "there is no environment 'x' (known are bobs, busybox-1, debian-12)"),
        ("a\nb", "there is no environment 'a?b' (known are bobs, busybox-1, debian-12)"),
        (
            "bobs",
            (
                "alice may not use the environment bobs: it is for named users "
                "(ask the administrators for access)"
            ),
        ),
        (
            f"debian-12@{OTHER}",
            (
                f"cannot use debian-12@{OTHER}: the environment never had this image here "
                "(see `hpcwrap images`)"
            ),
        ),
        (
            "/tmp/x.sif",
            (
                "cannot use -l container=/tmp/x.sif: it is a path or an image, and this site "
                "allows its environments only (see `hpcwrap env list`)"
            ),
        ),
    ],
)
def test_what_is_refused(recording: str, container: str, sentence: str, table: Path) -> None:
    assert submit(recording, table, container).rejected == f"hpcwrap: {sentence}"


def test_variables_that_pbs_has_lost(table: Path) -> None:
    """One of them was not UTF-8: then a hook gets none, and neither does the job."""
    recording = load("queuejob-queue")
    recording["job"]["Variable_List"] = None
    rejected = replay(recording, "submit", table).rejected
    assert rejected is not None
    assert "one of them is not UTF-8" in rejected


def test_an_empty_variable_asks_for_nothing(table: Path) -> None:
    recording = load("queuejob-queue")
    recording["job"]["Variable_List"]["HPCWRAP_CONTAINER"] = ""
    event = replay(recording, "submit", table)
    assert (event.rejected, event.job.Resource_List["container"]) == (None, None)


def test_an_unknown_name_as_qsub_sent_it(table: Path) -> None:
    rejected = submit("queuejob-unknown", table).rejected
    assert rejected == "hpcwrap: there is no environment 'debain-12' (did you mean debian-12?)"


def test_digests_do_not_count_for_ever(table: Path) -> None:
    document = json.loads(table.read_text())
    table.write_text(json.dumps({**document, "pins_until": 1}))
    assert submit("queuejob-option", table).job.Resource_List["container"] == "debian-12"


def test_none_where_the_site_does_not_allow_it(table: Path) -> None:
    assert submit("queuejob-option", table, "none").rejected is None
    document = json.loads(table.read_text())
    table.write_text(json.dumps({**document, "allow_none": False}))
    sentence = "cannot run without a container: this site does not allow -l container=none"
    assert submit("queuejob-option", table, "none").rejected == f"hpcwrap: {sentence}"


def test_a_job_without_a_container_needs_no_table(tmp_path: Path) -> None:
    assert submit("queuejob-queue", tmp_path / "missing.json").rejected is None


# ---- on the nodes ----

Installation = Callable[..., Path]


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """An installation whose Python notes how it was called, and ends as it is told."""

    def make(code: int = 0, says: str = "") -> Path:
        python = tmp_path / "bin" / "python3"
        python.parent.mkdir()
        python.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{tmp_path}/words\nenv -0 >{tmp_path}/variables\n"
            f"cat >{tmp_path}/told\n"
            f"echo '{says}' >&2\nexit {code}\n"
        )
        python.chmod(0o755)
        config = tmp_path / "config.json"
        config.write_text(pbs_hooks.node_config(str(tmp_path), "/opt/enter", "/opt/tell"))
        return config

    return make


def called(config: Path) -> tuple[list[str], Dict[str, str]]:
    """The words and the variables that a hook gave hpcwrap."""
    words = (config.parent / "words").read_text().splitlines()
    pairs = (config.parent / "variables").read_text().split("\0")[:-1]
    variables = dict(pair.split("=", 1) for pair in pairs)
    return words, {name: variables[name] for name in variables if name not in ("PWD", "_", "SHLVL")}


def begin(name: str, config: Path, **variables: str) -> tuple[Event, Any]:
    recording = load(name)
    recording["job"]["Variable_List"].update(variables)
    event = replay(recording, "prolog", config)
    words, inherited = called(config)
    assert words == ["-I", "-c", f"{TOLD}{RUN}('prolog', 'pbs')"]
    assert inherited == {}
    told = json.loads((config.parent / "told").read_text())
    assert all(key.startswith(("PBS_", "HPCWRAP_")) for key in told)
    return event, pbs.read_prolog({**told, "PBS_EUSER": HERE, "PBS_EGROUP": ""})


def test_the_first_node_of_a_job(installation: Installation) -> None:
    event, (job, request) = begin("execjob_begin-first", installation())
    assert event.rejected is None
    assert (job.id, job.node, job.nodes, job.workdir) == ("pbs-33.ctl", "n1", 2, "/home/alice")
    assert job.places == (("queue", "workq"),)
    assert (request.container, request.origin) == ("debian-12", "-l container")
    assert request.pin.startswith("sha256:")
    assert (job.limits.memory, job.limits.cpus) == (100 << 20, 1.0)


def test_variables_that_no_program_can_be_given(installation: Installation) -> None:
    """An exception in this hook would take the node out of service."""
    long = "/" + "x" * (1 << 18)
    event, (job, _) = begin("execjob_begin-first", installation(), PBS_O_WORKDIR=long)
    assert (event.rejected, job.workdir) == (None, long)


def test_another_node_of_it(installation: Installation) -> None:
    _, (job, request) = begin("execjob_begin-sister", installation())
    assert (job.id, job.node, request.container) == ("pbs-33.ctl", "n2", "debian-12")


def test_an_element_of_an_array_without_a_container(installation: Installation) -> None:
    _, (job, request) = begin("execjob_begin-array", installation())
    assert (job.id, request.container) == ("pbs-34[1].ctl", None)


def test_a_job_of_a_queue_with_a_default_of_ours(installation: Installation) -> None:
    _, (job, request) = begin("execjob_begin-queue", installation())
    assert (job.places, request.container) == ((("queue", "containers"),), None)


def test_after_a_prolog_that_failed_nothing_of_the_job_starts(installation: Installation) -> None:
    config = installation(3, "hpcwrap: no")
    event = replay(load("execjob_begin-first"), "prolog", config)
    assert event.rejected is None
    assert list((config.parent / "jobs/pbs-33.ctl").iterdir()), "a sweep drops what is empty"
    launched = replay(load("execjob_launch-host") | {"job": {"id": "33.ctl"}}, "enter", config)
    assert launched.rejected == "hpcwrap: no"


def test_an_unfit_node_goes_offline_and_the_job_elsewhere(installation: Installation) -> None:
    config = installation(4, "hpcwrap: cannot make a loop device")
    event = replay(load("execjob_begin-sister"), "prolog", config)
    assert event.rejected == "hpcwrap: cannot make a loop device"
    assert event.job.rerun_called
    node, other = event.vnode_list["n2"], event.vnode_list["n1"]
    assert (node.state, node.comment) == ("offline", "hpcwrap: cannot make a loop device")
    assert other.state is None


@pytest.mark.parametrize(
    ("recording", "command"),
    [
        ("execjob_launch-task", ["/bin/sh", "-c", "uname -n"]),
        ("execjob_launch-program", ["/bin/true"]),
    ],
)
def test_a_program_starts_inside(
    recording: str, command: list[str], installation: Installation
) -> None:
    config = installation()
    event = replay(load(recording), "enter", config)
    job = event.job.id
    assert event.progname == "/opt/enter"
    assert event.argv == ["/opt/enter", f"{config.parent}/jobs/pbs-{job}", "--", *command]
    words, variables = called(config)
    assert words == ["-I", "-c", f"{RUN}('enter', 'pbs')"]
    assert variables == {"PBS_JOBID": job, "HPCWRAP_PROCESS": str(os.getppid())}


@pytest.mark.parametrize(
    ("recording", "shell"),
    [("execjob_launch-script", "/bin/bash"), ("execjob_launch-interactive", "/bin/sh")],
)
def test_a_shell_is_one_of_the_images(
    recording: str, shell: str, installation: Installation
) -> None:
    argv = replay(load(recording), "enter", installation()).argv
    assert argv[2:5] == ["--", "/bin/sh", "-c"]
    assert argv[6:] == [shell]


def test_the_first_process_of_a_job_with_limits_tells_of_them(installation: Installation) -> None:
    config = installation()
    place = make_job(config, "33.ctl")
    (place / "cgroups").touch()
    script = replay(load("execjob_launch-script"), "enter", config)
    assert script.progname == "/opt/tell"
    assert script.argv[:4] == ["/opt/tell", "/opt/enter", str(place), "--"]
    task = replay(load("execjob_launch-task"), "enter", config)
    assert task.progname == "/opt/enter"


def test_a_job_without_a_container_is_left_alone(tmp_path: Path) -> None:
    event = replay(load("execjob_launch-host"), "enter", tmp_path / "missing.json")
    assert (event.progname, event.argv) == ("/bin/echo", ["/bin/echo", "a b"])


def test_a_process_without_its_limits_does_not_start(installation: Installation) -> None:
    config = installation(3, "hpcwrap: cannot move the job into its cgroup")
    event = replay(load("execjob_launch-task"), "enter", config)
    assert event.rejected == "hpcwrap: cannot move the job into its cgroup"


# ---- the end ----


def ended(config: Path) -> set[str]:
    """The jobs that the epilog was called for; `installation` notes the last, so one at a time."""
    noted = config.parent / "variables"
    return {called(config)[1]["PBS_JOBID"]} if noted.exists() else set()


def make_job(config: Path, job: str) -> Path:
    place = config.parent / "jobs" / f"pbs-{job}"
    place.mkdir(parents=True)
    return place


def test_a_jobs_end(installation: Installation) -> None:
    config = installation()
    event = replay(load("execjob_end-sister"), "epilog", config)
    assert ended(config) == set(), "a job without a container costs no process"
    make_job(config, event.job.id)
    replay(load("execjob_end-sister"), "epilog", config)
    assert ended(config) == {event.job.id}


def test_a_mom_that_starts_drops_what_it_does_not_know(installation: Installation) -> None:
    config = installation()
    jobs = config.parent / "mom_priv" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "1.ctl.JB").touch()
    make_job(config, "1.ctl")
    (config.parent / "jobs" / "run-7-99").mkdir()
    replay(load("exechost_startup"), "epilog", config)
    assert ended(config) == set()
    make_job(config, "2[1].ctl")
    replay(load("exechost_startup"), "epilog", config)
    assert ended(config) == {"2[1].ctl"}


def test_a_sweep_leaves_a_job_that_is_just_beginning(installation: Installation) -> None:
    config = installation()
    (config.parent / "mom_priv" / "jobs").mkdir(parents=True)
    place = make_job(config, "3.ctl")
    periodic = load("exechost_startup") | {"event": "exechost_periodic"}
    replay(periodic, "epilog", config)
    assert ended(config) == set()
    os.utime(place, (1, 1))
    replay(periodic, "epilog", config)
    assert ended(config) == {"3.ctl"}
