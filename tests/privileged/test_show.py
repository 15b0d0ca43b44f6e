"""`hpcwrap show`: root sees all jobs of a node, users their own, running and ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from hpcwrap import cli, ended, epilog, owners, paths, record, snapshot
from hpcwrap.config import Settings
from hpcwrap.paths import JobPaths
from hpcwrap.record import Record

pytestmark = pytest.mark.privileged

OWNER, OTHER = 1, 2
"""daemon and bin: accounts that every system has, with these numbers."""

NAMES = {OWNER: "daemon", OTHER: "bin"}
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with settings and directories of its own, which users may enter."""
    for each in (tmp_path, *list(tmp_path.parents)[:2]):
        each.chmod(0o755)
    jobs = tmp_path / "run" / "jobs"
    jobs.mkdir(parents=True)
    jobs.chmod(0o711)
    monkeypatch.setattr(paths, "JOBS", str(jobs))
    monkeypatch.setattr(paths, "ENDED", str(tmp_path / "run" / "ended"))
    (tmp_path / "hpcwrap.yaml").write_text(f"log: {tmp_path}/log/jobs.jsonl\nended_jobs: 4\n")
    settings = Settings(log=f"{tmp_path}/log/jobs.jsonl", ended_jobs=4)
    monkeypatch.setattr(snapshot, "load_settings", lambda: settings)
    return tmp_path


def begin(job: str, uid: int = OWNER, **more: Any) -> JobPaths:
    """Leave what a prolog leaves."""
    place = JobPaths(job, paths.JOBS)
    os.makedirs(place.directory, mode=0o711)
    what = ("slurm", "n1", NAMES[uid], "debian-12", "--container", "registry/debian:12", DIGEST)
    made = Record(job, *what, started=2.0, milliseconds={"prolog": 12.5}, uid=uid)
    made = made._replace(plan=("mount this",), variables=("set A b",), **more)
    record.write_record(place, made)
    record.publish(place.timing, b"join 0 90\njoin 1 110\n", 0o600, reader=uid)
    return place


def end(place: JobPaths) -> None:
    """Do what an epilog does."""
    with owners.turn(place):
        summary = epilog.finish(place)
    assert summary
    epilog.keep(summary)


def show(node: Path, *words: str, uid: int = 0) -> Any:
    """What `hpcwrap show … --json` prints for a user; its code where it prints nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        cli.main(["--config", f"{node}/hpcwrap.yaml", "show", *words, "--json"])
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(text) if code == 0 else code


def only(documents: List[Dict[str, Any]]) -> Dict[str, Any]:
    assert len(documents) == 1
    return documents[0]


@pytest.mark.parametrize("uid", [0, OWNER])
@pytest.mark.parametrize("over", [False, True])
def test_all_that_is_known_of_a_job(node: Path, uid: int, *, over: bool) -> None:
    place = begin("42", pin=DIGEST, warning="the tag is old")
    if over:
        end(place)
        assert os.listdir(paths.JOBS) == []
    asked = only(show(node, "request", "42", uid=uid))
    assert (asked["job"], asked["user"], asked["node"]) == ("42", "daemon", "n1")
    assert (asked["environment"], asked["origin"]) == ("debian-12", "--container")
    assert (asked["pin"], asked["reference"]) == (DIGEST, "registry/debian:12")
    made = only(show(node, "record", "42", uid=uid))
    assert (made["digest"], made["warning"]) == (DIGEST, "the tag is old")
    assert ("ended" in made) == over
    plan = only(show(node, "plan", "42", uid=uid))
    assert plan == {"operations": ["mount this"], "variables": ["set A b"]}
    times = only(show(node, "timing", "42", uid=uid))
    assert [join["us"] for join in times["joins"]] == [90, 110]
    assert ("epilog" in times["milliseconds"]) == over


@pytest.mark.parametrize("what", ["request", "record", "plan", "timing"])
@pytest.mark.parametrize("over", [False, True])
def test_another_users_job_is_not_shown(node: Path, what: str, *, over: bool) -> None:
    place = begin("42")
    if over:
        end(place)
    assert show(node, what, "42", uid=OTHER) == 2


@pytest.mark.parametrize("over", [False, True])
def test_no_file_of_a_job_is_for_other_users(*, over: bool) -> None:
    """Nor for the user's groups; and the user may not change what root reads."""
    place = begin("42")
    file = place.record
    if over:
        end(place)
        file = ended.path_of("42")
    assert os.stat(file).st_uid == 0
    assert opened(file, os.O_RDONLY, OWNER)
    assert not opened(file, os.O_RDWR, OWNER)
    assert not opened(file, os.O_RDONLY, OTHER)
    assert not opened(file, os.O_RDONLY, OTHER, groups=[OWNER])


def opened(path: str, flags: int, uid: int, groups: Optional[List[int]] = None) -> bool:
    """Whether a user can open a file."""
    child = os.fork()
    if child == 0:
        os.setgroups(groups or [])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            os.open(path, flags)
            os._exit(0)
        except PermissionError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("job", "word"),
    [
        ("42", "42"),
        ("pbs-42.server", "42.server"),
        ("pbs-42[7].server", "42[7].server"),
        ("gridengine-42-0", "42"),
        ("gridengine-42-7", "42.7"),
        ("lsf-42-0-u1", "42"),
        ("lsf-42-7-u1", "42[7]"),
        ("run-42-777", "run-42-777"),
        ("lsf-42-7-u1", "lsf-42-7-u1"),
    ],
)
def test_a_job_is_called_as_its_scheduler_calls_it(node: Path, job: str, word: str) -> None:
    place = begin(job)
    for uid in (0, OWNER):
        assert only(show(node, "record", word, uid=uid))["job"] == job
    end(place)
    for uid in (0, OWNER):
        assert only(show(node, "record", word, uid=uid))["job"] == job


@pytest.mark.parametrize(
    ("job", "word"), [("htcondor-42.0-slot1_1-u1", "42.0"), ("pbs-42.server", "42")]
)
def test_root_names_jobs_of_which_a_user_would_have_to_list_all(
    node: Path, job: str, word: str
) -> None:
    begin(job)
    assert only(show(node, "record", word))["job"] == job


def test_another_job_with_the_number_in_it_is_not_meant(node: Path) -> None:
    begin("142")
    begin("gridengine-42-1")
    assert show(node, "record", "42") == 2
    assert show(node, "record", "4") == 2
    assert show(node, "record", ".*") == 2


def test_a_job_of_several_nodes_is_found_in_the_sites_log(node: Path) -> None:
    end(begin("42"))
    log = node / "log" / "jobs.jsonl"
    here = log.read_text()
    assert "mount this" not in here
    log.write_text(here.replace('"n1"', '"n2"') + here + "\nbroken\n" + '{"job": "42"}\n')
    assert [each["node"] for each in show(node, "record", "42")] == ["n1", "n2"]
    assert show(node, "plan", "42") == [
        {"operations": ["mount this"], "variables": ["set A b"]},
        {},
    ]


def test_only_so_many_jobs_are_remembered(node: Path) -> None:
    """Four, says the site, and a fourth more until it is tidied up."""
    most = 0
    for number in range(12):
        end(begin(str(number)))
        os.utime(ended.path_of(str(number)), (number, number))
        most = max(most, len(os.listdir(paths.ENDED)))
    assert most == 5
    assert {"8.json", "9.json", "10.json", "11.json"} <= set(os.listdir(paths.ENDED))


def test_the_prologs_error_is_told(node: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record.write_error(JobPaths("42", paths.JOBS), "cannot find the image\x1b[2J")
    assert show(node, "record", "42", uid=OWNER) == 2
    assert "job 42 has no container: cannot find the image?[2J" in capfd.readouterr().err
