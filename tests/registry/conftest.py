"""Fixtures: a registry for all tests, images in it, stores that the image user can reach."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest
from registries import Cli, Layout, Pushed, Registry

# The maker of layers is the unit tests'.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))


@pytest.fixture(scope="session", name="registry")
def make_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry for all tests."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.stop()


@pytest.fixture(name="layout")
def make_layout(tmp_path: Path) -> Layout:
    """An empty layout."""
    return Layout(tmp_path / "layout")


@pytest.fixture(name="push")
def make_push(registry: Registry, layout: Layout) -> Any:
    """Push layers (tar streams, or blobs that are compressed already) under a name."""

    def push(name: str, layers: Sequence[bytes], **config: Any) -> Pushed:
        return layout.push_layers(registry, name, layers, config)

    return push


@pytest.fixture(name="root")
def make_store_directory() -> Iterator[str]:
    """A directory for a store that the image user can reach: pytest's are closed to others."""
    directory = tempfile.mkdtemp(prefix="hpcwrap-test-")
    os.chmod(directory, 0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(name="cli")
def make_cli(root: str) -> Cli:
    """The command line on an empty store."""
    return Cli(root)
