"""`hpcwrap enter`: which directory on this node is the job's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcwrap import paths
from hpcwrap.errors import UserError
from hpcwrap.verbs import enter


@pytest.mark.parametrize(
    ("directory", "word"),
    [
        ("pbs-12.server", "12.server"),
        ("gridengine-12-0", "12"),
        ("gridengine-12-3", "12.3"),
        (f"lsf-12-0-u{os.getuid()}", "12"),
        (f"lsf-12-3-u{os.getuid()}", "12[3]"),
        ("htcondor-12.0-slot1_1", "12.0"),
        ("run-ab12", "run-ab12"),
    ],
)
@pytest.mark.parametrize("listing", [True, False], ids=["root", "a user, who cannot list"])
def test_a_job_is_called_as_its_scheduler_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, word: str, *, listing: bool
) -> None:
    def refuse(_path: str) -> None:
        raise PermissionError

    monkeypatch.setattr(paths, "JOBS", str(tmp_path))
    (tmp_path / directory).mkdir()
    if not listing:
        monkeypatch.setattr(os, "listdir", refuse)
    place = enter.find_place(word)
    # Slots are HTCondor's to name, and nobody but root sees which there are.
    if listing or not directory.startswith("htcondor"):
        assert place is not None
        assert place.directory == str(tmp_path / directory)
    else:
        assert place is None


def test_slurms_containers_are_joined_by_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "JOBS", str(tmp_path))
    (tmp_path / "12").mkdir()
    assert enter.find_place("12") is None


@pytest.mark.parametrize("word", ["", ".", "..", "../12", "a/b"])
def test_what_leads_elsewhere_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="no number"):
        enter.find_place(word)


def test_the_node_may_be_named_after_the_job() -> None:
    assert enter.split(["--node", "n2", "--", "top", "-b"]) == ("n2", ["top", "-b"])
    assert enter.split(["sh", "--node", "n2"]) == (None, ["sh", "--node", "n2"])
    assert enter.split([]) == (None, [])
