"""LSF's files: what is read of them, and what setup finds missing."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from installation import site

from hpcwrap.finding import Finding
from hpcwrap.schedulers import lsf_files
from hpcwrap.schedulers.lsf_files import Place
from hpcwrap.verbs import setup_lsf

QUEUES = """\
# a comment = ignored
Begin Queue
QUEUE_NAME   = night   # for the night
PRIORITY     = 30
DESCRIPTION  = For jobs \\
that can wait
End Queue

begin queue
queue_name = day
JOB_STARTER = test "$HPCWRAP_LSF" = "$LSB_JOBID.$LSB_JOBINDEX" || exec /p/enter/lsf.sh; %USRCMD
PRE_EXEC = /site/check && /p/prolog/lsf.sh
POST_EXEC = /p/epilog/lsf.sh
end queue
"""


def states(findings: List[Finding]) -> List[Tuple[str, str]]:
    return [(finding.what, finding.state) for finding in findings]


def test_queues() -> None:
    queues = lsf_files.parse_queues(QUEUES)
    assert list(queues) == ["night", "day"]
    assert queues["night"]["DESCRIPTION"].split() == ["For", "jobs", "that", "can", "wait"]
    assert [lsf_files.starts_containers(queue) for queue in queues.values()] == [False, True]


def test_what_is_well(tmp_path: Path) -> None:
    place = Place("", str(tmp_path), "", "")
    found = lsf_files.check_queues(lsf_files.parse_queues(QUEUES), place)
    assert states(found) == [("queue night", "note"), ("queue day", "ok")]


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ("POST_EXEC = /p/epilog/lsf.sh", "", "missing"),
        ("%USRCMD", "", "wrong"),
        ("PRIORITY     = 30", "PRE_POST_EXEC_USER = root", "wrong"),
        ("/p/enter/lsf.sh", "/p/enter/other", "missing"),
    ],
)
def test_what_is_not(tmp_path: Path, old: str, new: str, state: str) -> None:
    place = Place("", str(tmp_path), "", "")
    found = lsf_files.check_queues(lsf_files.parse_queues(QUEUES.replace(old, new)), place)
    assert state in [finding.state for finding in found]


def test_where_the_files_are(tmp_path: Path) -> None:
    """IBM's are in a directory for each cluster."""
    volclava = site(tmp_path / "one")
    assert lsf_files.find_place(volclava).files == str(tmp_path / "one")
    conf = tmp_path / "conf"
    batch = tmp_path / "lsbatch" / "big" / "configdir"
    batch.mkdir(parents=True)
    conf.mkdir()
    (conf / "lsf.conf").write_text(f"LSB_CONFDIR={tmp_path}/lsbatch\n")
    (batch / "lsb.queues").write_text(QUEUES)
    place = lsf_files.find_place({"LSF_ENVDIR": str(conf)})
    assert place.path("lsb.queues") == str(batch / "lsb.queues")
    assert place.path("lsf.conf") == str(conf / "lsf.conf")
    assert list(lsf_files.read_queues(place)) == ["night", "day"]
    assert lsf_files.default_queue(place) == "default"


def test_the_lines_are_what_the_check_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in site(tmp_path / "etc").items():
        monkeypatch.setenv(name, value)
    queues = tmp_path / "etc" / "lsb.queues"
    queues.write_text("Begin Queue\nQUEUE_NAME = normal\nEnd Queue\n")
    conf = tmp_path / "etc" / "lsf.conf"
    conf.write_text(conf.read_text() + 'LSB_ESUB_METHOD="of_others"\n')
    missing = {finding.what for finding in setup_lsf.check(None) if finding.state == "missing"}
    assert {"JOB_STARTER", "LSB_ESUB_METHOD", "methods"} <= missing

    lines = setup_lsf.lines(None, "lsb.queues")
    queues.write_text(f"Begin Queue\nQUEUE_NAME = normal\n{lines}End Queue\n")
    with conf.open("a") as file:
        file.write(setup_lsf.lines(None, "lsf.conf"))
    found = setup_lsf.check(None)
    assert ("queue normal", "ok") in states(found)
    assert ("LSB_ESUB_METHOD", "ok") in states(found)
    assert lsf_files.parse_conf(conf.read_text())["LSB_ESUB_METHOD"] == "of_others hpcwrap"
    assert [setup_lsf.lines(None, file) for file in setup_lsf.FILES] == ["", ""]


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in site(tmp_path / "etc").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hpcwrap.verbs.setup_host.need_root", lambda: None)
    return tmp_path / "etc"


def texts(directory: Path) -> Dict[str, str]:
    return {path.name: path.read_text() for path in directory.glob("esub.*")}


def test_an_esub_for_each_environment(methods: Path) -> None:
    (methods / "esub.container").write_text("somebody else's")
    (methods / "esub.fluent").write_text("somebody else's")
    said = setup_lsf.write_table(None)
    names = {"hpcwrap", "container", "none", "debian-12", "busybox-1", "others", "fluent"}
    assert set(texts(methods)) == {f"esub.{name}" for name in names}
    assert "left container alone, which are not ours" in said
    assert texts(methods)["esub.container"] == "somebody else's"
    assert (methods / "esub.debian-12").stat().st_mode & 0o777 == 0o755
    assert "submit/lsf.sh" in texts(methods)["esub.debian-12"]


def test_an_esub_goes_with_its_environment(methods: Path) -> None:
    setup_lsf.write_table(None)
    (methods / "environments.d" / "busybox-1.yaml").unlink()
    (methods / "esub.fluent").write_text("somebody else's")
    assert setup_lsf.write_table(None).endswith("removed busybox-1")
    assert set(texts(methods)) >= {"esub.fluent", "esub.debian-12"}
    assert setup_lsf.write_table(None).endswith("up to date")


def test_bqueues_says_what_is_in_force() -> None:
    text = (
        "QUEUE: normal\n  -- jobs\nJOB_STARTER:  exec /p/enter/lsf.sh; %USRCMD\n\n"
        "-----\n\nQUEUE: other\nPRE_EXEC:  x\n"
    )
    assert setup_lsf.running_starters(text) == {
        "normal": "exec /p/enter/lsf.sh; %USRCMD",
        "other": "",
    }
