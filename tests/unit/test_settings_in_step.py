"""The table of settings, the shipped files and the manual say the same."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from hpcwrap import config, environmentfile, settingsfile
from hpcwrap.config import ROWS, Row
from hpcwrap.environment import MOUNT_FLAGS, MOUNT_SIZES, MOUNT_VARIABLES

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "conf/hpcwrap.yaml"
EXAMPLE = REPOSITORY / "conf/environments.d/example.yaml.example"
MANUAL = REPOSITORY / "docs/settings.md"
GUIDE = REPOSITORY / "docs/environments.md"

REMEDY = "run: .venv/bin/hpcwrap config --defaults > conf/hpcwrap.yaml"


def uncomment(text: str) -> str:
    """Take the # away from all lines that are no prose (prose has a blank after its #)."""
    return re.sub(r"^#(?! \w|$)", "", text, flags=re.MULTILINE)


def section(heading: str) -> str:
    """The text of the manual below a heading, up to the next of its rank or above."""
    found = re.search(
        rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,3}} |\Z)",
        MANUAL.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert found, f"docs/settings.md has no section {heading}"
    return found.group(2)


def test_the_shipped_settings_are_printed_from_the_table() -> None:
    assert SHIPPED.read_text() == settingsfile.format_defaults(), REMEDY


def test_the_shipped_settings_change_nothing() -> None:
    loaded = config.load_config(str(SHIPPED))
    assert loaded.settings == config.Settings()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.environments == {}
    assert loaded.problems() == {}


def test_the_shipped_settings_uncommented_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "hpcwrap.yaml"
    path.write_text(uncomment(SHIPPED.read_text()))
    loaded = config.load_config(str(path))
    assert loaded.settings == config.Settings()
    assert "default" not in loaded.origins.values()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_manual_has_every_setting_with_its_default(row: Row) -> None:
    text = section(f"`{row.name}`")
    assert f"Default: `{settingsfile.format_value(row.default)}`" in text
    assert row.help in " ".join(text.split())
    for word in row.choices:
        assert f"`{word}`" in text


def test_the_manual_has_no_setting_that_is_not() -> None:
    part = MANUAL.read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    assert re.findall(r"^### `(\w+)`", part, flags=re.MULTILINE) == [row.name for row in ROWS]


def test_the_manual_has_every_key_of_an_environment() -> None:
    part = MANUAL.read_text().split("\n## Environments\n")[1].split("\n## ")[0]
    keys = re.findall(r"^### `(\w+)`", part, flags=re.MULTILINE)
    assert sorted(keys) == sorted(environmentfile.KEYS)
    for action in environmentfile.ACTIONS:
        assert f"`{action}`" in part


def test_the_manual_has_every_word_of_a_mount() -> None:
    text = MANUAL.read_text().split("\n## Mounts\n")[1].split("\n## ")[0]
    for word in (*MOUNT_FLAGS, *(f"{name}=" for name in MOUNT_SIZES)):
        assert f"`{word}" in text
    for variable in MOUNT_VARIABLES:
        assert f"`${variable}`" in text


def test_the_example_environment_is_not_taken_for_one() -> None:
    assert environmentfile.read_environments(str(EXAMPLE.parent)) == ({}, {}, {})


def test_the_example_environment_uncommented_uses_every_key(tmp_path: Path) -> None:
    (tmp_path / "debian-12.yaml").write_text("image: debian:12\n")
    text = uncomment(EXAMPLE.read_text())
    (tmp_path / "example.yaml").write_text(text)
    found = environmentfile.read_environments(str(tmp_path))
    assert found.broken == {}
    assert set(found.resolved["example"].origins) == set(environmentfile.KEYS)
    actions = {variable.action for variable in found.resolved["example"].environment.variables}
    assert actions == set(environmentfile.ACTIONS)


def test_the_guides_examples_work(tmp_path: Path) -> None:
    (tmp_path / "environments.d").mkdir()
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", GUIDE.read_text(), flags=re.MULTILINE)
    for block in (textwrap.dedent(block) for block in blocks):
        named = re.match(r"# /etc/hpcwrap/(.*)\n", block.lstrip())
        if named:
            (tmp_path / named.group(1)).write_text(block.replace("5f0c…", "5f0c" * 16))
    (tmp_path / "environments.d/ubuntu-16.04.yaml").write_text("image: ubuntu:16.04\n")
    defaults = next(block for block in blocks if "defaults:" in block)
    (tmp_path / "hpcwrap.yaml").write_text(textwrap.dedent(defaults))
    loaded = config.load_config(str(tmp_path / "hpcwrap.yaml"))
    assert loaded.problems() == {}
    assert sorted(loaded.environments) == ["cfd-2024", "debian-12", "ubuntu-16.04"]
    assert loaded.settings.defaults["slurm"]["account"] == {"cfd": "cfd-2024"}
    scratch = [m for m in loaded.environment("cfd-2024").mounts if m.target == "/scratch"]
    assert [mount.source for mount in scratch] == ["/lustre/projects/cfd/$USER"]
