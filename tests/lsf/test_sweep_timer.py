"""The timer that `hpcwrap setup lsf` starts on hosts with systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcwrap.verbs import setup_helper, setup_sweep


def test_a_host_without_systemd_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_helper, "SYSTEMD", str(tmp_path / "none"))
    assert "have root's cron run `" in setup_sweep.install()
    assert "/bin/hpcwrap sweep` every 5 minutes" in setup_sweep.install()


def test_units_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_helper, "DIRECTORY", str(tmp_path))
    for expected in (True, False):
        for name, text in setup_sweep.render("/opt/hpcwrap/bin/hpcwrap sweep").items():
            assert setup_sweep.write(name, text) is expected
    assert (
        "ExecStart=/opt/hpcwrap/bin/hpcwrap sweep\n"
        in (tmp_path / setup_sweep.UNITS[0]).read_text()
    )
