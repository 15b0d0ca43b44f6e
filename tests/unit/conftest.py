"""What several files of tests here ask for."""

from __future__ import annotations

import pathlib

import pytest
from filters import LUAS, Filter


@pytest.fixture(params=LUAS or [None])
def lua(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Filter:
    if request.param is None:
        pytest.skip("no Lua interpreter is installed (Debian: lua5.1)")
    return Filter(request.param, tmp_path)
