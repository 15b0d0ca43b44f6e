"""What `hpcwrap doctor` finds: this machine as it is, and what is wrong where something is."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import List

import pytest

from hpcwrap import cli, paths
from hpcwrap.config import Settings
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, Finding
from hpcwrap.schedulers import states
from hpcwrap.schedulers.states import DRAINED, UP, NodeState
from hpcwrap.verbs import doctor, doctor_node
from hpcwrap.verbs.doctor_node import Node


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A host without a scheduler, with a store and a broken environment."""
    file = tmp_path / "hpcwrap.yaml"
    file.write_text(f"store: {tmp_path}/store\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "environments.d").mkdir()
    (tmp_path / "environments.d" / "good.yaml").write_text("image: debian:12\n")
    (tmp_path / "environments.d" / "bad.yaml").write_text("imgae: debian:12\n")
    monkeypatch.setattr(paths, "JOBS", str(tmp_path / "jobs"))
    return Node(str(file), Settings(store=f"{tmp_path}/store"), "")


def by_what(found: List[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in found}


def test_this_machine_can_run_containers(node: Node) -> None:
    found = by_what([*doctor_node.kernel(node), *doctor_node.file_systems(node)])
    assert found["release"].state == WELL
    assert found["squashfs"].state == found["overlay"].state == WELL


def test_a_broken_environment_is_named_with_its_line(node: Node) -> None:
    found = by_what(list(doctor_node.environments(node)))
    assert found["bad"].state == WRONG
    assert "bad.yaml:1" in found["bad"].detail
    assert found["environments"].detail == "1"


def test_a_store_that_is_not_mounted(node: Node, tmp_path: Path) -> None:
    (there,) = doctor_node.store(node)
    assert (there.state, there.what) == (WELL, f"{tmp_path}/store")
    gone = node._replace(settings=Settings(store="/no/such/store", cache="/no/such/cache"))
    store, cache = doctor_node.store(gone)
    assert (store.state, cache.state) == (MISSING, NOTE)
    assert "is it mounted?" in store.detail


def test_the_helper_is_looked_for_where_jobs_need_it(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "HELPER_SOCKET", str(tmp_path / "sock"))
    assert list(doctor_node.helper(node)) == []
    lsf = node._replace(scheduler="lsf")
    (missing,) = doctor_node.helper(lsf)
    assert missing.state == MISSING
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.HELPER_SOCKET)
        listener.listen()
        (there,) = doctor_node.helper(lsf)
    assert there.state == WELL


def test_what_cannot_be_looked_at_is_said(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def loop_devices(_node: Node) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor_node, "CHECKS", (loop_devices,))
    (found,) = doctor_node.examine(node)
    assert (found.file, found.state) == ("loop devices", WRONG)


def test_nodes_that_take_no_jobs_are_wrong(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reader:
        @staticmethod
        def read_nodes(_settings: Settings) -> List[NodeState]:
            return [NodeState("n1", UP, "idle"), NodeState("n2", DRAINED, "drained", "disk")]

    monkeypatch.setattr(states, "find", lambda *_words: ("slurm", Reader))
    words = ["--config", str(node.config_file), "doctor", "--cluster"]
    assert cli.run(words) == 3
    text = capsys.readouterr().out
    assert "wrong  n2     node  drained: disk" in text
    assert "n1" not in text
    assert "looked at 2: 1 well" in text
    assert cli.run([*words, "--json"]) == 3
    assert [each["state"] for each in json.loads(capsys.readouterr().out)] == [WELL, WRONG]


def test_the_worst_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding("f", name, state, "") for name, state in zip("abc", (WELL, NOTE, WRONG))]
    doctor.report(found, everything=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [WRONG, NOTE, WELL]
