"""Snapshots: never stale, in whichever direction the files change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcwrap import config, snapshot
from hpcwrap.config import Settings
from hpcwrap.environment import Environment, Mount, Variable
from hpcwrap.errors import SiteError, UserError

SETTINGS = "log: /first.log\nmounts: [/sw]\ndefaults: {slurm: {partition: {gpu: mine}}}\n"
BASE = "image: debian:12\nmounts: [/data]\nvariables: {set: {A: b}}\n"
MINE = "base: base\nusers: [alice]\n"


def later() -> int:
    """A clock ten seconds ahead: by then files that were just written have settled."""
    return time.time_ns() + 10_000_000_000


class Site:
    """A directory like /etc/hpcwrap, and one like /run/hpcwrap/snapshots."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "etc"
        self.cache = directory / "run" / "snapshots"
        self.file = str(self.directory / "hpcwrap.yaml")
        self.clock: Callable[[], int] = later
        (self.directory / "environments.d").mkdir(parents=True)
        self.write("hpcwrap.yaml", SETTINGS)
        self.write("environments.d/base.yaml", BASE)
        self.write("environments.d/mine.yaml", MINE)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def mine(self) -> tuple[Settings, Environment]:
        return snapshot.load_environment("mine", self.file, str(self.cache), self.clock)

    def settings(self) -> Settings:
        return snapshot.load_settings(self.file, str(self.cache), self.clock)

    def uses_snapshot(self, name: str = "mine") -> bool:
        """Whether the next load takes the snapshot: then a mark put into it comes back."""
        path = self.cache / f"{name}.json"
        document = json.loads(path.read_text())
        document["settings"]["log"] = "/mark"
        path.write_text(json.dumps(document))
        loaded = self.settings() if name == "_settings" else self.mine()[0]
        return loaded.log == "/mark"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_snapshot_holds_what_the_yaml_says(site: Site) -> None:
    expected = config.load_config(site.file)
    assert site.mine() == (expected.settings, expected.environment("mine"))
    assert site.mine() == (expected.settings, expected.environment("mine"))
    assert site.uses_snapshot()


def test_the_settings_alone_have_a_snapshot_too(site: Site) -> None:
    expected = config.load_config(site.file).settings
    assert site.settings() == expected
    assert site.settings() == expected
    assert site.uses_snapshot("_settings")


def edit_settings(site: Site) -> None:
    site.write("hpcwrap.yaml", SETTINGS.replace("first", "other"))


def edit_environment(site: Site) -> None:
    site.write("environments.d/mine.yaml", MINE.replace("alice", "carol"))


def edit_base(site: Site) -> None:
    site.write("environments.d/base.yaml", BASE.replace("12", "13"))


def edit_and_put_the_time_back(site: Site) -> None:
    path = site.directory / "environments.d/mine.yaml"
    before = path.stat()
    edit_environment(site)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


def replace_by_rename(site: Site) -> None:
    site.write("environments.d/new", MINE.replace("alice", "carol"))
    os.rename(site.directory / "environments.d/new", site.directory / "environments.d/mine.yaml")


def add_drop_in_directory(site: Site) -> None:
    (site.directory / "conf.d").mkdir()
    site.write("conf.d/a.yaml", "log: /drop-in\n")


def change_base(site: Site) -> None:
    site.write("environments.d/other.yaml", "image: other\n")
    site.write("environments.d/mine.yaml", "base: other\n")


def turn_environments_directory(site: Site) -> None:
    directory = site.directory / "environments.d"
    directory.rename(site.directory / "old.d")
    directory.mkdir()
    site.write("environments.d/mine.yaml", "image: other\n")


CHANGES = [
    edit_settings,
    edit_environment,
    edit_base,
    edit_and_put_the_time_back,
    replace_by_rename,
    add_drop_in_directory,
    change_base,
    turn_environments_directory,
]


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_the_yaml_counts_at_once(site: Site, change: Callable[[Site], None]) -> None:
    before = site.mine()
    change(site)
    expected = config.load_config(site.file)
    assert site.mine() == (expected.settings, expected.environment("mine"))
    assert site.mine() != before
    assert site.uses_snapshot(), "the change was not taken into the snapshot"


def test_drop_ins_added_edited_and_removed_count_at_once(site: Site) -> None:
    (site.directory / "conf.d").mkdir()
    assert (site.settings().log, site.mine()[0].log) == ("/first.log", "/first.log")
    site.write("conf.d/a.yaml", "log: /drop-in\n")
    assert (site.settings().log, site.mine()[0].log) == ("/drop-in", "/drop-in")
    site.write("conf.d/a.yaml", "log: /changed\n")
    assert (site.settings().log, site.mine()[0].log) == ("/changed", "/changed")
    (site.directory / "conf.d/a.yaml").unlink()
    assert (site.settings().log, site.mine()[0].log) == ("/first.log", "/first.log")


def test_a_removed_environment_is_gone_at_once(site: Site) -> None:
    site.mine()
    site.write("hpcwrap.yaml", "")
    (site.directory / "environments.d/mine.yaml").unlink()
    with pytest.raises(UserError, match="there is no environment 'mine'"):
        site.mine()


def test_a_removed_base_is_missed_at_once(site: Site) -> None:
    site.mine()
    (site.directory / "environments.d/base.yaml").unlink()
    with pytest.raises(SiteError, match="there is no environment 'base' to be the base"):
        site.mine()


def test_an_environment_broken_by_an_edit_is_broken_at_once_and_heals(site: Site) -> None:
    good = site.mine()
    site.write("environments.d/mine.yaml", MINE + "imge: x\n")
    for _ in range(2):
        with pytest.raises(SiteError, match="unknown key imge"):
            site.mine()
    site.write("environments.d/mine.yaml", MINE)
    assert site.mine() == good


def test_settings_removed_are_missed_at_once(site: Site) -> None:
    site.mine()
    os.unlink(site.file)
    with pytest.raises(SiteError, match="cannot read"):
        site.mine()


def test_other_settings_do_not_get_the_snapshot_of_these(site: Site, tmp_path: Path) -> None:
    site.mine()
    other = tmp_path / "other"
    (other / "environments.d").mkdir(parents=True)
    (other / "hpcwrap.yaml").write_text("log: /other\n")
    (other / "environments.d/mine.yaml").write_text("image: other\n")
    settings, mine = snapshot.load_environment(
        "mine", str(other / "hpcwrap.yaml"), str(site.cache), later
    )
    assert (settings.log, mine.image) == ("/other", "other")
    assert site.mine()[0].log == "/first.log"


def test_files_too_new_to_be_told_apart_leave_no_snapshot(site: Site) -> None:
    site.clock = time.time_ns
    site.mine()
    assert not (site.cache / "mine.json").exists()
    site.clock = later
    site.mine()
    assert (site.cache / "mine.json").exists()


def test_files_settle_two_seconds_after_their_last_change() -> None:
    second = 1_000_000_000
    stamps = {"/a": [10 * second, 4 * second, 1, 1], "/gone": None}
    assert not snapshot.settled(stamps, 12 * second)
    assert snapshot.settled(stamps, 12 * second + 1)
    changed_back = {"/a": [4 * second, 10 * second, 1, 1]}
    assert not snapshot.settled(changed_back, 12 * second)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"version": "0.0"}', "\udcff"],
)
def test_a_spoilt_snapshot_is_made_anew(site: Site, text: str) -> None:
    good = site.mine()
    (site.cache / "mine.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert site.mine() == good
    assert site.uses_snapshot()


@pytest.mark.parametrize("key", ["version", "config_file", "stamps", "settings", "environment"])
def test_a_snapshot_of_another_shape_is_made_anew(site: Site, key: str) -> None:
    good = site.mine()
    path = site.cache / "mine.json"
    for other in (None, "x", {"x": 1}, [1]):
        document: Dict[str, object] = json.loads(path.read_text())
        document[key] = other
        path.write_text(json.dumps(document))
        assert site.mine() == good
        assert json.loads(path.read_text())[key] != other


def test_snapshots_are_for_their_owner_alone(site: Site) -> None:
    site.mine()
    assert site.cache.stat().st_mode & 0o777 == 0o700
    assert (site.cache / "mine.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in site.cache.iterdir()] == ["mine.json"]


def test_without_a_place_for_snapshots_the_yaml_is_read(site: Site) -> None:
    site.cache.parent.write_text("a file where a directory should be")
    assert site.mine()[1].image == "debian:12"
    assert site.settings().log == "/first.log"


def test_an_unfinished_snapshot_is_left_to_its_writer_and_removed_when_old(site: Site) -> None:
    unfinished = site.cache / "mine.json.new"
    site.cache.mkdir(parents=True)
    unfinished.write_text("{")
    site.mine()
    assert unfinished.exists()
    assert not (site.cache / "mine.json").exists()
    site.clock = lambda: time.time_ns() + 120_000_000_000
    site.mine()
    assert not unfinished.exists()
    site.mine()
    assert site.uses_snapshot()


@pytest.mark.parametrize("name", ["", "none", "../mine", "_settings", "a/b", "Mine", "a\0b"])
def test_a_name_that_cannot_be_never_becomes_a_path(site: Site, name: str) -> None:
    site.settings()
    with pytest.raises(UserError, match="there is no environment"):
        snapshot.load_environment(name, site.file, str(site.cache), later)
    assert [path.name for path in site.cache.iterdir()] == ["_settings.json"]


def test_a_fresh_snapshot_needs_no_yaml(site: Site) -> None:
    site.mine()
    site.settings()
    script = (
        "import sys, time; from hpcwrap import snapshot\n"
        f"snapshot.load_settings({site.file!r}, {str(site.cache)!r})\n"
        f"snapshot.load_environment('mine', {site.file!r}, {str(site.cache)!r})\n"
        "print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    loaded = set(run.stdout.split())
    assert "hpcwrap.snapshot" in loaded
    slow = {"yaml", "hpcwrap.yamlfile", "hpcwrap.settingsfile", "difflib", "subprocess", "pathlib"}
    assert loaded.isdisjoint(slow)


texts = st.text(max_size=8)
mounts = st.builds(
    Mount, texts, texts, st.sampled_from(["bind", "tmpfs"]), st.lists(texts).map(tuple), texts
)
environments = st.builds(
    Environment,
    name=texts,
    image=texts,
    description=texts,
    mounts=st.lists(mounts, max_size=2).map(tuple),
    variables=st.lists(st.builds(Variable, texts, texts, texts, texts), max_size=2).map(tuple),
    workdir=st.none() | texts,
    users=st.lists(texts, max_size=2).map(tuple),
    groups=st.lists(texts, max_size=2).map(tuple),
    origin=texts,
    base=st.none() | texts,
)
all_settings = st.builds(
    Settings,
    store=texts,
    squashfs_level=st.integers(),
    mount_home=st.booleans(),
    mounts=st.lists(mounts, max_size=2).map(tuple),
    defaults=st.just({"slurm": {"partition": {"a": "b"}, "account": {}}}),
)


@settings(max_examples=40)
@given(all_settings, st.none() | environments)
def test_everything_survives_json(some: Settings, environment: Environment | None) -> None:
    document = json.loads(json.dumps(snapshot.dump(some, environment)))
    assert snapshot.restore(document) == (some, environment)
